import Foundation

/// One run of the sidecar's program.
///
/// `Process` may be asked and told from any thread, though not every Foundation says so.
final class Child: @unchecked Sendable {
    private let process = Process()
    private let output: AsyncStream<Data>
    private let errors: AsyncStream<Data>
    /// Its exit status, or minus the signal that killed it.
    private let status: Task<Int32, Never>

    /// Start it. Throws `Qwen3Error.notLaunched`.
    init(_ launch: Launch) throws {
        let output = Pipe(), errors = Pipe()
        process.executableURL = launch.executable
        process.arguments = launch.allArguments
        process.environment = launch.fullEnvironment
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = errors
        self.output = output.chunks()
        self.errors = errors.chunks()
        let (exits, exit) = AsyncStream.makeStream(of: Int32.self)
        status = Task { await exits.first { _ in true } ?? 0 }
        process.terminationHandler = { process in
            let killed = process.terminationReason == .uncaughtSignal
            exit.yield(killed ? -process.terminationStatus : process.terminationStatus)
            exit.finish()
        }
        do {
            try withSignals { try process.run() }
        } catch {
            exit.finish()
            throw Qwen3Error.notLaunched("\(launch.executable.path): \(error.localizedDescription)")
        }
    }

    /// Wait for its first line. Throws Qwen3Error: .notReady, .badReadyLine, .exited.
    func ready(within limit: Duration) async throws -> ReadyLine {
        let output = output
        let line = try await withLimit(limit, Qwen3Error.notReady(after: limit)) {
            await Self.firstLine(of: output)
        }
        guard let line else { throw await exit() }
        return try ReadyLine(line: line)
    }

    /// Wait for its end, also when cancelled, and tell of it.
    func exit() async -> Qwen3Error {
        .exited(status: await status.value, log: await lastWords())
    }

    private static func firstLine(of output: AsyncStream<Data>) async -> Data? {
        var bytes = Data()
        for await chunk in output {
            bytes += chunk
            if let end = bytes.firstIndex(of: UInt8(ascii: "\n")) { return bytes[..<end] }
        }
        return nil
    }

    func terminate() {
        if process.isRunning { process.terminate() }
    }

    func kill() {
        if process.isRunning { _ = Foundation.kill(process.processIdentifier, SIGKILL) }
    }

    /// The end of its standard error. Whatever else holds the pipe open is not waited for.
    private func lastWords() async -> String {
        let all = Task { [errors] in await errors.reduce(into: Data()) { $0 += $1 } }
        let timer = Task {
            try await Task.sleep(for: .milliseconds(500))
            all.cancel()  // then it returns what it has
        }
        let text = String(decoding: await all.value.suffix(2000), as: UTF8.self)
        timer.cancel()
        return text.trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

extension Pipe {
    /// What comes out of it. It is emptied whether or not anyone reads; the latest is kept.
    fileprivate func chunks() -> AsyncStream<Data> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: Data.self, bufferingPolicy: .bufferingNewest(64))
        fileHandleForReading.readabilityHandler = { handle in
            let data = handle.availableData
            if data.isEmpty {  // the end
                handle.readabilityHandler = nil
                continuation.finish()
            } else {
                continuation.yield(data)
            }
        }
        return stream
    }
}

/// A child inherits which signals are blocked, and the threads of Swift's tasks may block SIGTERM.
private func withSignals(_ work: () throws -> Void) rethrows {
    var none = sigset_t(), before = sigset_t()
    sigemptyset(&none)
    pthread_sigmask(SIG_SETMASK, &none, &before)
    defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
    try work()
}

/// Do something, or throw after so long. What is done has to notice that it was cancelled.
private func withLimit<Value: Sendable>(
    _ limit: Duration, _ late: some Error, _ work: @escaping @Sendable () async throws -> Value
) async throws -> Value {
    try await withThrowingTaskGroup(of: Value.self) { group in
        group.addTask(operation: work)
        group.addTask {
            try await Task.sleep(for: limit)
            throw late
        }
        defer { group.cancelAll() }
        return try await group.next()!
    }
}
