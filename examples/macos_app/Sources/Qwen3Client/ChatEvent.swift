import Foundation

/// A piece of a reply as it streams.
public enum ChatEvent: Equatable, Sendable {
    /// More of what the model thinks to itself.
    case thinking(String)
    /// More of its answer.
    case answer(String)
    /// A call, complete. Answer it with `Message.result(_:of:)` and ask again.
    case toolCall(ToolCall)
    /// Nothing comes after this.
    case end(Ending)
}

/// What a model wants called. arguments: a JSON object, as text.
public struct ToolCall: Equatable, Sendable {
    public var id: String
    public var name: String
    public var arguments: String

    public init(id: String, name: String, arguments: String) {
        self.id = id
        self.name = name
        self.arguments = arguments
    }
}

/// How a reply ended. reason: "stop", "length" (maxTokens reached) or "tool_calls".
public struct Ending: Equatable, Sendable {
    public var reason: String
    public var promptTokens = 0
    /// Everything generated, thinking included.
    public var completionTokens = 0
    public var thinkingTokens = 0
}

/// Turns the data of a stream's events into `ChatEvent`s.
struct ReplyReader {
    private(set) var ended = false
    private var ending = Ending(reason: "stop")
    private var calls: [Int: ToolCall] = [:]  // those being written, by their place in the reply

    /// Throws `Qwen3Error.failed` when the server reports an error, `.disconnected` on nonsense.
    mutating func read(_ data: String) throws -> [ChatEvent] {
        if data == "[DONE]" {
            ended = true
            return [.end(ending)]
        }
        let chunk = try Self.decode(data)
        if let error = chunk.error { throw Qwen3Error.failed(error.message) }
        if let usage = chunk.usage { count(usage) }
        return chunk.choices?.first.map { events(of: $0) } ?? []
    }

    private mutating func events(of choice: Chunk.Choice) -> [ChatEvent] {
        var events: [ChatEvent] = []
        if let text = choice.delta?.reasoning_content, !text.isEmpty { events.append(.thinking(text)) }
        if let text = choice.delta?.content, !text.isEmpty { events.append(.answer(text)) }
        for piece in choice.delta?.tool_calls ?? [] { add(piece) }
        if let reason = choice.finish_reason {
            ending.reason = reason
            events += calls.sorted { $0.key < $1.key }.map { .toolCall($0.value) }
            calls = [:]
        }
        return events
    }

    private mutating func add(_ piece: Chunk.CallPiece) {
        var call = calls[piece.index] ?? ToolCall(id: "", name: "", arguments: "")
        call.id += piece.id ?? ""
        call.name += piece.function?.name ?? ""
        call.arguments += piece.function?.arguments ?? ""
        calls[piece.index] = call
    }

    private mutating func count(_ usage: Chunk.Usage) {
        ending.promptTokens = usage.prompt_tokens
        ending.completionTokens = usage.completion_tokens
        ending.thinkingTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0
    }

    private static func decode(_ data: String) throws -> Chunk {
        do {
            return try JSONDecoder().decode(Chunk.self, from: Data(data.utf8))
        } catch {
            throw Qwen3Error.disconnected("not a part of a reply: \(data.prefix(200))")
        }
    }
}

/// One part of a streamed reply, with the API's own names.
private struct Chunk: Decodable {
    let choices: [Choice]?
    let usage: Usage?
    let error: ErrorBody.Details?

    struct Choice: Decodable {
        let delta: Delta?
        let finish_reason: String?
    }
    struct Delta: Decodable {
        let content: String?
        let reasoning_content: String?
        let tool_calls: [CallPiece]?
    }
    struct CallPiece: Decodable {
        let index: Int
        let id: String?
        let function: Function?
        struct Function: Decodable { let name, arguments: String? }
    }
    struct Usage: Decodable {
        let prompt_tokens: Int
        let completion_tokens: Int
        let completion_tokens_details: Details?
        struct Details: Decodable { let reasoning_tokens: Int? }
    }
}

/// An error as the API puts it.
struct ErrorBody: Decodable {
    let error: Details
    struct Details: Decodable {
        let message: String
        let code: String?
    }
}
