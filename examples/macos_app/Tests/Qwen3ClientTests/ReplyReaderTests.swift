import Foundation
import Testing
@testable import Qwen3Client

@Suite struct ReplyReaderTests {
    func events(_ chunks: String...) throws -> [ChatEvent] {
        var reader = ReplyReader()
        return try chunks.flatMap { try reader.read($0) }
    }

    @Test func thinkingAnswerAndUsage() throws {
        let events = try events(
            #"{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}"#,
            #"{"choices": [{"delta": {"reasoning_content": "Hm"}, "finish_reason": null}]}"#,
            #"{"choices": [{"delta": {"content": "85"}}], "usage": null}"#,
            #"{"choices": [{"delta": {}, "finish_reason": "length"}]}"#,
            """
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, \
            "total_tokens": 13, "completion_tokens_details": {"reasoning_tokens": 3}}}
            """,
            "[DONE]")
        let ending = Ending(
            reason: "length", promptTokens: 9, completionTokens: 4, thinkingTokens: 3)
        #expect(events == [.thinking("Hm"), .answer("85"), .end(ending)])
    }

    @Test func callsInPieces() throws {
        let events = try events(
            #"{"choices": [{"delta": {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "later", "arguments": "{}"}}]}}]}"#,
            #"{"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "now", "arguments": ""}}]}}]}"#,
            #"{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{\"zone\""}}]}}]}"#,
            #"{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}}]}"#,
            #"{"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}"#,
            "[DONE]")
        #expect(events == [
            .toolCall(ToolCall(id: "a", name: "now", arguments: #"{"zone": 1}"#)),
            .toolCall(ToolCall(id: "b", name: "later", arguments: "{}")),
            .end(Ending(reason: "tool_calls")),
        ])
    }

    @Test func anErrorInTheMidstOfIt() {
        #expect(throws: Qwen3Error.failed("out of memory")) {
            try events(#"{"error": {"message": "out of memory", "type": "server_error", "code": null}}"#)
        }
    }

    @Test func nonsense() {
        #expect(throws: Qwen3Error.disconnected("not a part of a reply: <html>")) {
            try events("<html>")
        }
    }

    @Test(arguments: [
        (400, #"{"error": {"message": "too long", "code": "context_length_exceeded"}}"#,
         Qwen3Error.refused(status: 400, message: "too long", code: "context_length_exceeded")),
        (429, #"{"error": {"message": "full"}}"#, .busy(retryAfter: 2, message: "full")),
        (502, "<html>", .refused(status: 502, message: "The server answered with status 502.", code: nil)),
    ])
    func refusals(status: Int, body: String, error: Qwen3Error) {
        let end = HTTPStream.Part(status: status, retryAfter: 2, data: Data())
        #expect(Qwen3.error(end, Data(body.utf8)) == error)
    }
}
