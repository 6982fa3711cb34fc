import Foundation
import Testing
@testable import Qwen3Client

@Suite struct ReadyLineTests {
    /// As `mlx-qwen3 serve --ready-json` writes it.
    static let line = """
        {"url": "http://127.0.0.1:49152", "socket": null, "key": "k-1", "pid": 4711, \
        "version": "0.1.0", "models": ["demo", "4b"]}
        """

    @Test func allOfIt() throws {
        let ready = try ReadyLine(line: Self.line.utf8)
        #expect(ready.url == URL(string: "http://127.0.0.1:49152"))
        #expect(ready.key == "k-1")
        #expect(ready.pid == 4711)
        #expect(ready.version == "0.1.0")
        #expect(ready.models == ["demo", "4b"])
    }

    @Test(arguments: ["", "Loading...", "{}", "[1]", #"{"url": "http://127.0.0.1:1"}"#])
    func anythingElse(line: String) {
        #expect(throws: Qwen3Error.badReadyLine(line)) { try ReadyLine(line: line.utf8) }
    }
}
