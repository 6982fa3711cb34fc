import Foundation
import Testing
@testable import Qwen3Client

private let program = ProcessInfo.processInfo.environment["QWEN3_EXECUTABLE"]

/// With the real sidecar and its demo model, where QWEN3_EXECUTABLE names `mlx-qwen3`.
@Suite(.enabled(if: program != nil), .timeLimit(.minutes(3)), .serialized)
struct LiveTests {
    /// Do something with a sidecar that runs.
    func withQwen(_ body: (Qwen3) async throws -> Void) async throws {
        let executable = URL(fileURLWithPath: try #require(program))
        let qwen = Qwen3(Launch(executable: executable, arguments: ["serve", "--model", "demo"]))
        await qwen.sidecar.start()
        do {
            try await body(qwen)
        } catch {
            await qwen.sidecar.stop()
            throw error
        }
        await qwen.sidecar.stop()
    }

    func sum(_ a: Int, _ b: Int) -> ChatRequest {
        var request = ChatRequest("What is \(a) + \(b)?")
        request.thinking = true
        request.temperature = 0
        request.maxTokens = 500
        return request
    }

    func answer(_ qwen: Qwen3, _ request: ChatRequest) async throws -> String {
        try await qwen.stream(request).reduce(into: "") { text, event in
            if case .answer(let more) = event { text += more }
        }
    }

    @Test func thinksAndAnswers() async throws {
        try await withQwen { qwen in
            var thought = "", answer = "", endings: [Ending] = []
            for try await event in qwen.stream(sum(27, 58)) {
                switch event {
                case .thinking(let text): thought += text
                case .answer(let text): answer += text
                case .toolCall(let call): Issue.record("called \(call.name)")
                case .end(let ending): endings.append(ending)
                }
            }
            #expect(thought.contains("carry"))
            #expect(answer.contains("27 + 58 = 85."))
            #expect(endings.map(\.reason) == ["stop"])
            #expect(try #require(endings.first).thinkingTokens > 0)
        }
    }

    @Test func severalAtOnce() async throws {
        try await withQwen { qwen in
            async let one = answer(qwen, sum(27, 58))
            async let other = answer(qwen, sum(14, 21))
            let answers = try await [one, other]
            #expect(answers[0].contains("85"))
            #expect(answers[1].contains("35"))
        }
    }

    @Test func callsATool() async throws {
        try await withQwen { qwen in
            var request = ChatRequest("What time is it in Tokyo?")
            request.temperature = 0
            request.tools = [
                Tool(
                    name: "get_current_time",
                    description: "Get current time in a specific timezone",
                    parameters: [
                        "type": "object",
                        "properties": [
                            "timezone": ["type": "string", "description": "IANA timezone name"],
                        ],
                        "required": ["timezone"],
                    ])
            ]
            var calls: [ToolCall] = []
            for try await event in qwen.stream(request) {
                if case .toolCall(let call) = event { calls.append(call) }
            }
            let call = try #require(calls.first)
            #expect(call.name == "get_current_time")
            #expect(call.arguments.contains("Asia/Tokyo"))
            request.messages += [
                .assistant("", calls: calls),
                .result(#"{"datetime": "2025-01-01T09:00:00+09:00"}"#, of: call),
            ]
            #expect(try await answer(qwen, request).contains("9:00"))
        }
    }

    @Test func aCancelledTaskEndsItsReply() async throws {
        try await withQwen { qwen in
            let (started, start) = AsyncStream.makeStream(of: Void.self)
            let reading = Task {
                defer { start.finish() }
                var events = 0
                for try await _ in qwen.stream(sum(4821, 3990)) {
                    events += 1
                    start.yield()
                }
                return events
            }
            _ = await started.first { _ in true }
            reading.cancel()
            let cut = try await reading.value
            let whole = try await qwen.stream(sum(4821, 3990)).reduce(0) { count, _ in count + 1 }
            #expect(cut < whole)
        }
    }

    @Test func anotherAnswerAfterACrash() async throws {
        try await withQwen { qwen in
            let first = try await qwen.sidecar.ready()
            kill(first.pid, SIGKILL)
            for await state in qwen.sidecar.states {
                if case .restarting = state { break }
            }
            #expect(try await answer(qwen, sum(27, 58)).contains("85"))
        }
    }

    @Test func aCrashEndsAStream() async throws {
        try await withQwen { qwen in
            let ready = try await qwen.sidecar.ready()
            await #expect(throws: Qwen3Error.self) {
                for try await _ in qwen.stream(sum(4821, 3990)) { kill(ready.pid, SIGKILL) }
            }
        }
    }

    @Test func refusalsHaveTheServersWords() async throws {
        try await withQwen { qwen in
            var request = sum(1, 2)
            request.model = "none"
            do {
                _ = try await answer(qwen, request)
                Issue.record("it was not refused")
            } catch Qwen3Error.refused(let status, let message, _) {
                #expect(status == 404)
                #expect(message.contains("none"))
            }
        }
    }
}
