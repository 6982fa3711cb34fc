import Foundation

/// Everything that can go wrong, as an app wants to tell it apart.
public enum Qwen3Error: Error, Equatable, Sendable {
    /// The program could not be started at all: not there, not executable.
    case notLaunched(String)
    /// It ended. status: its exit status, or minus the signal that killed it. log: its last words.
    case exited(status: Int32, log: String)
    /// It was not ready within `Launch.readyTimeout`.
    case notReady(after: Duration)
    /// Its first line was no ready line.
    case badReadyLine(String)
    /// Nothing runs: `start` was not called, or `stop` was.
    case stopped
    /// The server refused, in its own words. code: "context_length_exceeded" and the like.
    case refused(status: Int, message: String, code: String?)
    /// No room for one more reply; worth another try after so many seconds.
    case busy(retryAfter: Double?, message: String)
    /// The reply failed while it was made.
    case failed(String)
    /// The connection broke, or what came over it made no sense.
    case disconnected(String)
}

extension Qwen3Error: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .notLaunched(let reason): "The model's program could not be started: \(reason)"
        case .exited(let status, let log):
            "The model's program ended with status \(status). \(log)"
        case .notReady(let limit): "The model's program was not ready after \(limit)."
        case .badReadyLine(let line): "The model's program began with \u{201c}\(line)\u{201d}."
        case .stopped: "The model's program is not running."
        case .refused(_, let message, _), .failed(let message): message
        case .busy(_, let message): message
        case .disconnected(let reason): "The connection to the model broke: \(reason)"
        }
    }
}
