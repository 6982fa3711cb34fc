import Foundation

/// The data of server-sent events, out of bytes that may be split anywhere.
///
/// Lines end with LF, CRLF or CR; several data lines make one event; comments and other fields are
/// skipped. Source: the HTML standard, section 9.2.6.
struct ServerSentEvents {
    private var line: [UInt8] = []
    private var data: [String] = []
    private var afterCarriageReturn = false

    /// Take the next bytes; return the data of every event they complete.
    mutating func feed(_ bytes: some Sequence<UInt8>) -> [String] {
        bytes.compactMap { feed($0) }
    }

    private mutating func feed(_ byte: UInt8) -> String? {
        defer { afterCarriageReturn = byte == Self.carriageReturn }
        switch byte {
        case Self.lineFeed: return afterCarriageReturn ? nil : endLine()
        case Self.carriageReturn: return endLine()
        default:
            line.append(byte)
            return nil
        }
    }

    private mutating func endLine() -> String? {
        defer { line.removeAll(keepingCapacity: true) }
        if line.isEmpty {
            defer { data.removeAll() }
            return data.isEmpty ? nil : data.joined(separator: "\n")
        }
        let parts = line.split(separator: Self.colon, maxSplits: 1, omittingEmptySubsequences: false)
        guard parts[0].elementsEqual("data".utf8) else { return nil }
        let value = parts.count > 1 ? parts[1] : []
        data.append(String(decoding: value.first == Self.space ? value.dropFirst() : value, as: UTF8.self))
        return nil
    }

    private static let lineFeed = UInt8(ascii: "\n")
    private static let carriageReturn = UInt8(ascii: "\r")
    private static let colon = UInt8(ascii: ":")
    private static let space = UInt8(ascii: " ")
}
