import Foundation

/// The process that runs the model: started, watched, started again after a crash, stopped.
public actor Sidecar {
    public enum State: Equatable, Sendable {
        case stopped
        case starting
        case ready(ReadyLine)
        /// It crashed, and is about to be started again.
        case restarting(after: Qwen3Error)
        /// It does not start, or crashes again and again; `start` tries once more.
        case failed(Qwen3Error)
    }

    /// Every change of state, for one reader: a model that the user interface observes.
    public nonisolated let states: AsyncStream<State>
    public private(set) var state = State.stopped

    private let launch: Launch
    private let changes: AsyncStream<State>.Continuation
    private var child: Child?
    private var keeper: Task<Void, Never>?
    private var waiting: [UUID: CheckedContinuation<ReadyLine, any Error>] = [:]

    public init(_ launch: Launch) {
        self.launch = launch
        (states, changes) = AsyncStream.makeStream(of: State.self, bufferingPolicy: .bufferingNewest(16))
    }

    /// Start the process and keep it running. Does nothing while it does.
    public func start() {
        guard keeper == nil else { return }
        change(to: .starting)
        keeper = Task { await keep() }
    }

    /// Stop it, and wait until it is gone. Call this before the app ends; should the app crash, the
    /// sidecar notices by itself.
    public func stop() async {
        guard let keeper else { return change(to: .stopped) }
        keeper.cancel()
        child?.terminate()
        let killer = Task { [child, launch] in
            try await Task.sleep(for: launch.stopTimeout)
            child?.kill()
        }
        await keeper.value
        killer.cancel()
    }

    /// Wait until it is ready. Throws Qwen3Error, or CancellationError.
    public func ready() async throws -> ReadyLine {
        switch state {
        case .ready(let ready): return ready
        case .failed(let error): throw error
        case .stopped: throw Qwen3Error.stopped
        case .starting, .restarting: break
        }
        let id = UUID()
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { waiting[id] = $0 }
        } onCancel: {
            Task { await self.giveUp(id) }
        }
    }

    private func giveUp(_ id: UUID) {
        waiting.removeValue(forKey: id)?.resume(throwing: CancellationError())
    }

    /// One process after the other, until it is stopped or there is no use in going on.
    private func keep() async {
        var crashes = 0, everReady = false
        while true {
            let (error, lived) = await run()
            if Task.isCancelled { return end(.stopped) }
            everReady = everReady || lived != nil
            crashes = (lived ?? .zero) > .seconds(60) ? 1 : crashes + 1
            guard everReady, crashes <= launch.maxRestarts else { return end(.failed(error)) }
            change(to: .restarting(after: error))
            try? await Task.sleep(for: launch.delay(afterCrash: crashes))
            if Task.isCancelled { return end(.stopped) }
            change(to: .starting)
        }
    }

    /// One process, to its end: why it ended, and how long it had been ready; nil: never.
    private func run() async -> (Qwen3Error, Duration?) {
        do {
            let child = try Child(launch)
            self.child = child
            let ready = try await child.ready(within: launch.readyTimeout)
            change(to: .ready(ready))
            let began = ContinuousClock.now
            return (await child.exit(), ContinuousClock.now - began)
        } catch {
            child?.kill()
            _ = await child?.exit()
            return (error as? Qwen3Error ?? .stopped, nil)
        }
    }

    private func end(_ state: State) {
        keeper = nil
        child = nil
        change(to: state)
    }

    private func change(to new: State) {
        state = new
        changes.yield(new)
        switch new {
        case .ready(let ready): answer(.success(ready))
        case .failed(let error): answer(.failure(error))
        case .stopped: answer(.failure(Qwen3Error.stopped))
        case .starting, .restarting: break
        }
    }

    private func answer(_ result: Result<ReadyLine, any Error>) {
        waiting.values.forEach { $0.resume(with: result) }
        waiting = [:]
    }
}
