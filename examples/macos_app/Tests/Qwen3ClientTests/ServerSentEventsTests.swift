import Testing
@testable import Qwen3Client

@Suite struct ServerSentEventsTests {
    static let stream = ": hello\n\ndata: {\"a\": \"é\"}\n\ndata:one\r\ndata: two\r\n\r\nid: 7\ndata\r\rdata: [DONE]\n\n"
    static let events = ["{\"a\": \"é\"}", "one\ntwo", "", "[DONE]"]

    @Test func wholeStream() {
        var parser = ServerSentEvents()
        #expect(parser.feed(Self.stream.utf8) == Self.events)
    }

    /// Also in the midst of a character, and between CR and LF.
    @Test(arguments: 0...Self.stream.utf8.count)
    func splitAnywhere(at place: Int) {
        var parser = ServerSentEvents()
        let first = parser.feed(Self.stream.utf8.prefix(place))
        #expect(first + parser.feed(Self.stream.utf8.dropFirst(place)) == Self.events)
    }

    @Test func byteByByte() {
        var parser = ServerSentEvents()
        #expect(Self.stream.utf8.flatMap { parser.feed([$0]) } == Self.events)
    }

    @Test func nothingBeforeTheBlankLine() {
        var parser = ServerSentEvents()
        #expect(parser.feed("data: half".utf8).isEmpty)
        #expect(parser.feed("\n".utf8).isEmpty)
        #expect(parser.feed("\n".utf8) == ["half"])
    }

    @Test func otherFieldsAreNoData() {
        var parser = ServerSentEvents()
        #expect(parser.feed("event: x\ndatabase: y\nretry: 3\n\n".utf8).isEmpty)
    }
}
