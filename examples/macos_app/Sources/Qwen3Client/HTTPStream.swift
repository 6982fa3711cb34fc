import Foundation
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// A response as it comes in, over a connection of its own.
///
/// Not `URLSession.bytes(for:)`, which Foundation has on Apple's systems only: this is the same on
/// all, so that what the tests ran is what the app runs.
final class HTTPStream: NSObject, URLSessionDataDelegate, Sendable {
    /// More of the body, empty at its end. retryAfter: seconds.
    struct Part: Sendable {
        let status: Int
        let retryAfter: Double?
        let data: Data
    }

    private let parts: AsyncThrowingStream<Part, any Error>.Continuation

    private init(_ parts: AsyncThrowingStream<Part, any Error>.Continuation) {
        self.parts = parts
    }

    /// Send a request. Whoever stops listening, or is cancelled, ends it. Throws URLError.
    static func open(_ request: URLRequest) -> AsyncThrowingStream<Part, any Error> {
        let (stream, continuation) = AsyncThrowingStream.makeStream(of: Part.self)
        let session = URLSession(
            configuration: configuration(), delegate: HTTPStream(continuation), delegateQueue: nil)
        let task = session.dataTask(with: request)
        continuation.onTermination = { _ in session.invalidateAndCancel() }
        task.resume()
        return stream
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        add(data, of: dataTask)
    }

    func urlSession(
        _ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?
    ) {
        if error == nil { add(Data(), of: task) }
        parts.finish(throwing: error)
    }

    private func add(_ data: Data, of task: URLSessionTask) {
        guard let response = task.response as? HTTPURLResponse else { return }
        let retryAfter = response.value(forHTTPHeaderField: "Retry-After").flatMap(Double.init)
        parts.yield(Part(status: response.statusCode, retryAfter: retryAfter, data: data))
    }

    private static func configuration() -> URLSessionConfiguration {
        let configuration = URLSessionConfiguration.ephemeral
        configuration.connectionProxyDictionary = [:]  // no proxy has a business with 127.0.0.1
        return configuration
    }
}
