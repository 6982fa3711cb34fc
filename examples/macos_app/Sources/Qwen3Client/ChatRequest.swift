import Foundation

/// One message of a conversation.
public struct Message: Equatable, Sendable {
    public enum Role: String, Encodable, Sendable { case system, user, assistant, tool }

    public var role: Role
    public var content: String
    /// What an assistant's message called; empty for all others.
    public var toolCalls: [ToolCall] = []
    /// Which call a tool's message answers.
    public var toolCallID: String?

    public static func system(_ text: String) -> Message { Message(role: .system, content: text) }
    public static func user(_ text: String) -> Message { Message(role: .user, content: text) }
    public static func assistant(_ text: String, calls: [ToolCall] = []) -> Message {
        Message(role: .assistant, content: text, toolCalls: calls)
    }
    public static func result(_ text: String, of call: ToolCall) -> Message {
        Message(role: .tool, content: text, toolCallID: call.id)
    }
}

/// A function the model may call. parameters: a JSON schema.
public struct Tool: Equatable, Sendable {
    public var name: String
    public var description: String
    public var parameters: JSON

    public init(name: String, description: String, parameters: JSON) {
        self.name = name
        self.description = description
        self.parameters = parameters
    }
}

/// What is asked of the model. What stays nil is the model's own setting.
public struct ChatRequest: Equatable, Sendable {
    public var messages: [Message]
    /// nil: the sidecar's first.
    public var model: String?
    public var thinking: Bool?
    /// Tokens of thinking after which the model has to answer.
    public var thinkingBudget: Int?
    public var maxTokens: Int?
    public var temperature: Double?
    public var seed: Int?
    public var tools: [Tool] = []
    /// A JSON schema the answer is held to.
    public var schema: JSON?

    public init(_ messages: [Message]) { self.messages = messages }
    public init(_ question: String) { self.init([.user(question)]) }
}

// As OpenAI's chat completions API wants it; thinking is Qwen's addition.

extension Message: Encodable {
    private enum Key: String, CodingKey { case role, content, tool_calls, tool_call_id }

    public func encode(to encoder: any Encoder) throws {
        var object = encoder.container(keyedBy: Key.self)
        try object.encode(role, forKey: .role)
        try object.encode(content, forKey: .content)
        if !toolCalls.isEmpty { try object.encode(toolCalls, forKey: .tool_calls) }
        try object.encodeIfPresent(toolCallID, forKey: .tool_call_id)
    }
}

extension ToolCall: Encodable {
    private enum Key: String, CodingKey { case id, type, function }
    private struct Function: Encodable { let name, arguments: String }

    public func encode(to encoder: any Encoder) throws {
        var object = encoder.container(keyedBy: Key.self)
        try object.encode(id, forKey: .id)
        try object.encode("function", forKey: .type)
        try object.encode(Function(name: name, arguments: arguments), forKey: .function)
    }
}

extension Tool: Encodable {
    private enum Key: String, CodingKey { case type, function }
    private struct Function: Encodable {
        let name, description: String
        let parameters: JSON
    }

    public func encode(to encoder: any Encoder) throws {
        var object = encoder.container(keyedBy: Key.self)
        try object.encode("function", forKey: .type)
        let function = Function(name: name, description: description, parameters: parameters)
        try object.encode(function, forKey: .function)
    }
}

extension ChatRequest: Encodable {
    private enum Key: String, CodingKey {
        case model, messages, tools, thinking_budget, max_tokens, temperature, seed
        case chat_template_kwargs, response_format, stream, stream_options
    }

    public func encode(to encoder: any Encoder) throws {
        var object = encoder.container(keyedBy: Key.self)
        try object.encodeIfPresent(model, forKey: .model)
        try object.encode(messages, forKey: .messages)
        if !tools.isEmpty { try object.encode(tools, forKey: .tools) }
        try object.encodeIfPresent(thinkingBudget, forKey: .thinking_budget)
        try object.encodeIfPresent(maxTokens, forKey: .max_tokens)
        try object.encodeIfPresent(temperature, forKey: .temperature)
        try object.encodeIfPresent(seed, forKey: .seed)
        if let thinking {
            try object.encode(["enable_thinking": thinking], forKey: .chat_template_kwargs)
        }
        if let schema {
            let named: JSON = ["name": "answer", "schema": schema, "strict": true]
            let format: JSON = ["type": "json_schema", "json_schema": named]
            try object.encode(format, forKey: .response_format)
        }
        try object.encode(true, forKey: .stream)
        try object.encode(["include_usage": true], forKey: .stream_options)
    }
}
