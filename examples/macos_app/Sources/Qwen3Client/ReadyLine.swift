import Foundation

/// What the sidecar says, once, on its standard output: one line of JSON.
public struct ReadyLine: Decodable, Equatable, Sendable {
    /// Where its API is: "http://127.0.0.1:PORT".
    public let url: URL
    /// Made for this run, and asked of every request.
    public let key: String
    public let pid: Int32
    public let version: String
    /// What it offers, by name; the first is the default.
    public let models: [String]

    /// Throws `Qwen3Error.badReadyLine`.
    init(line: some Sequence<UInt8>) throws {
        let data = Data(line)
        do {
            self = try JSONDecoder().decode(ReadyLine.self, from: data)
        } catch {
            throw Qwen3Error.badReadyLine(String(decoding: data.prefix(200), as: UTF8.self))
        }
    }
}
