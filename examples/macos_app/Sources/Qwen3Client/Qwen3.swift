import Foundation
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Qwen3 for an app: the sidecar process, and replies from it.
///
///     let qwen = Qwen3(Launch(executable: url, arguments: ["serve", "--model", "4b"]))
///     await qwen.sidecar.start()
///     for try await event in qwen.stream(ChatRequest("Why is the sky blue?")) {
///         if case .answer(let text) = event { print(text, terminator: "") }
///     }
///     await qwen.sidecar.stop()
public struct Qwen3: Sendable {
    public let sidecar: Sidecar

    public init(_ launch: Launch) {
        sidecar = Sidecar(launch)
    }

    /// A reply, as it is made; `.end` comes last. While the sidecar starts, or starts again, this
    /// waits for it. Cancelling the task that reads it, or reading no further, stops the model.
    /// Throws Qwen3Error, and nothing else.
    public func stream(_ request: ChatRequest) -> AsyncThrowingStream<ChatEvent, any Error> {
        let (events, continuation) = AsyncThrowingStream.makeStream(of: ChatEvent.self)
        let work = Task {
            do {
                try await reply(to: request) { continuation.yield($0) }
                continuation.finish()
            } catch {
                let other = Qwen3Error.disconnected(error.localizedDescription)
                continuation.finish(throwing: error as? Qwen3Error ?? other)
            }
        }
        continuation.onTermination = { _ in work.cancel() }
        return events
    }

    private func reply(to request: ChatRequest, yield: (ChatEvent) -> Void) async throws {
        var server = ServerSentEvents(), reader = ReplyReader(), refusal = Data()
        for try await part in HTTPStream.open(try await post(request)) {
            guard part.status == 200 else {
                refusal += part.data
                if part.data.isEmpty { throw Self.error(part, refusal) }
                continue
            }
            for data in server.feed(part.data) where !reader.ended {
                try reader.read(data).forEach(yield)
            }
        }
        if !reader.ended { throw Qwen3Error.disconnected("the reply breaks off") }
    }

    private func post(_ request: ChatRequest) async throws -> URLRequest {
        let ready = try await sidecar.ready()
        var request = request
        request.model = request.model ?? ready.models.first
        var post = URLRequest(url: ready.url.appendingPathComponent("v1/chat/completions"))
        post.httpMethod = "POST"
        post.timeoutInterval = 600  // without a byte: a long prompt is read before the first
        post.setValue("application/json", forHTTPHeaderField: "Content-Type")
        post.setValue("Bearer \(ready.key)", forHTTPHeaderField: "Authorization")
        post.httpBody = try JSONEncoder().encode(request)
        return post
    }

    static func error(_ end: HTTPStream.Part, _ body: Data) -> Qwen3Error {
        let details = try? JSONDecoder().decode(ErrorBody.self, from: body).error
        let message = details?.message ?? "The server answered with status \(end.status)."
        if end.status == 429 { return .busy(retryAfter: end.retryAfter, message: message) }
        return .refused(status: end.status, message: message, code: details?.code)
    }
}
