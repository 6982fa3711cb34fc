import Foundation
import Testing
@testable import Qwen3Client

@Suite struct ChatRequestTests {
    /// What is encoded, as JSON again, so that the order of keys does not matter.
    func json(_ request: ChatRequest) throws -> JSON {
        try JSONDecoder().decode(JSON.self, from: JSONEncoder().encode(request))
    }

    @Test func whatIsNotSetIsNotSent() throws {
        #expect(try json(ChatRequest("Hi")) == [
            "messages": [["role": "user", "content": "Hi"]],
            "stream": true,
            "stream_options": ["include_usage": true],
        ])
    }

    @Test func everyOption() throws {
        var request = ChatRequest([.system("Be brief."), .user("Hi")])
        request.model = "demo"
        request.thinking = false
        request.thinkingBudget = 100
        request.maxTokens = 50
        request.temperature = 0
        request.seed = 7
        request.schema = ["type": "integer"]
        #expect(try json(request) == [
            "model": "demo",
            "messages": [
                ["role": "system", "content": "Be brief."], ["role": "user", "content": "Hi"],
            ],
            "chat_template_kwargs": ["enable_thinking": false],
            "thinking_budget": 100,
            "max_tokens": 50,
            "temperature": 0,
            "seed": 7,
            "response_format": [
                "type": "json_schema",
                "json_schema": ["name": "answer", "schema": ["type": "integer"], "strict": true],
            ],
            "stream": true,
            "stream_options": ["include_usage": true],
        ])
    }

    @Test func toolsAndTheirResults() throws {
        let call = ToolCall(id: "call-1", name: "now", arguments: #"{"zone": "Asia/Tokyo"}"#)
        var request = ChatRequest([.user("When?"), .assistant("", calls: [call]), .result("9:00", of: call)])
        request.tools = [Tool(name: "now", description: "The time", parameters: ["type": "object"])]
        let sent = try json(request)
        #expect(sent["tools"] == [[
            "type": "function",
            "function": [
                "name": "now", "description": "The time", "parameters": ["type": "object"],
            ],
        ]])
        #expect(sent["messages"] == [
            ["role": "user", "content": "When?"],
            [
                "role": "assistant", "content": "",
                "tool_calls": [[
                    "id": "call-1", "type": "function",
                    "function": ["name": "now", "arguments": #"{"zone": "Asia/Tokyo"}"#],
                ]],
            ],
            ["role": "tool", "content": "9:00", "tool_call_id": "call-1"],
        ])
    }

    /// A server that wants a whole number of tokens refuses 100.0.
    @Test func wholeNumbersStayWhole() throws {
        var request = ChatRequest("Hi")
        request.schema = ["minLength": 2]
        let text = String(decoding: try JSONEncoder().encode(request), as: UTF8.self)
        #expect(text.contains(#""minLength":2}"#))
    }
}

extension JSON {
    fileprivate subscript(key: String) -> JSON? {
        if case .object(let object) = self { object[key] } else { nil }
    }
}
