import Foundation
import Testing
@testable import Qwen3Client

/// Shell scripts stand for the sidecar.
@Suite(.timeLimit(.minutes(1))) struct SidecarTests {
    static let sayReady = #"""
        printf '{"url": "http://127.0.0.1:1", "key": "k", "pid": %d, ' $$
        printf '"version": "1", "models": ["demo"]}\n'
        """#

    func sidecar(_ script: String, _ change: (inout Launch) -> Void = { _ in }) -> Sidecar {
        let shell = URL(fileURLWithPath: "/bin/sh")
        var launch = Launch(executable: shell, arguments: ["-c", script, "sidecar"])
        launch.restartDelay = .milliseconds(10)
        change(&launch)
        return Sidecar(launch)
    }

    func runs(_ pid: Int32) -> Bool { kill(pid, 0) == 0 }

    /// The error of a sidecar that is started and does not get ready.
    func failure(of sidecar: Sidecar) async -> Qwen3Error? {
        await sidecar.start()
        do {
            _ = try await sidecar.ready()
            return nil
        } catch {
            await sidecar.stop()
            return error as? Qwen3Error
        }
    }

    @Test func startsAndStops() async throws {
        let sidecar = sidecar(Self.sayReady + "\nexec sleep 60")
        await sidecar.start()
        let ready = try await sidecar.ready()
        #expect(ready.models == ["demo"])
        #expect(runs(ready.pid))
        await sidecar.stop()
        #expect(!runs(ready.pid))
        #expect(await sidecar.state == .stopped)
        await #expect(throws: Qwen3Error.stopped) { try await sidecar.ready() }
    }

    @Test func isToldTheHandshake() async throws {
        let sidecar = sidecar("printf '%s' \"$*\" >&2; exit 2")
        let own = ProcessInfo.processInfo.processIdentifier
        let said = "--port 0 --ready-json --parent-pid \(own)"
        #expect(await failure(of: sidecar) == .exited(status: 2, log: said))
    }

    @Test func mayBeStartedAgain() async throws {
        let sidecar = sidecar(Self.sayReady + "\nexec sleep 60")
        await sidecar.start()
        let first = try await sidecar.ready()
        await sidecar.stop()
        await sidecar.start()
        #expect(try await sidecar.ready().pid != first.pid)
        await sidecar.stop()
    }

    @Test func isKilledWhenItDoesNotStop() async throws {
        let sidecar = sidecar("trap '' TERM\n" + Self.sayReady + "\nwhile :; do sleep 0.05; done") {
            $0.stopTimeout = .milliseconds(100)
        }
        await sidecar.start()
        let ready = try await sidecar.ready()
        await sidecar.stop()
        #expect(!runs(ready.pid))
    }

    @Test func stopsWhileItStarts() async throws {
        let sidecar = sidecar("exec sleep 60")
        await sidecar.start()
        let waiting = Task { try await sidecar.ready() }
        try await Task.sleep(for: .milliseconds(50))
        await sidecar.stop()
        await #expect(throws: Qwen3Error.stopped) { try await waiting.value }
    }

    @Test func whoNoLongerWaitsIsLetGo() async throws {
        let sidecar = sidecar("exec sleep 60")
        await sidecar.start()
        let waiting = Task { try await sidecar.ready() }
        try await Task.sleep(for: .milliseconds(50))
        waiting.cancel()
        await #expect(throws: CancellationError.self) { try await waiting.value }
        await sidecar.stop()
    }

    @Test func isStartedAgainAfterACrash() async throws {
        let sidecar = sidecar(Self.sayReady + "\nexec sleep 60")
        await sidecar.start()
        let first = try await sidecar.ready()
        kill(first.pid, SIGKILL)
        var seen: [Sidecar.State] = []
        for await state in sidecar.states {
            seen.append(state)
            if case .ready(let ready) = state, ready.pid != first.pid { break }
        }
        #expect(seen.contains(.restarting(after: .exited(status: -SIGKILL, log: ""))))
        #expect(runs(try await sidecar.ready().pid))
        await sidecar.stop()
    }

    @Test func staysDownAfterManyCrashes() async throws {
        let sidecar = sidecar(Self.sayReady + "\necho oh no >&2; exit 3") { $0.maxRestarts = 2 }
        await sidecar.start()
        var crashes = 0
        for await state in sidecar.states {
            if case .restarting = state { crashes += 1 }
            if case .failed(let error) = state {
                #expect(error == .exited(status: 3, log: "oh no"))
                break
            }
        }
        #expect(crashes == 2)
    }

    @Test func neverReady() async {
        let sidecar = sidecar("exec sleep 60") { $0.readyTimeout = .milliseconds(100) }
        #expect(await failure(of: sidecar) == .notReady(after: .milliseconds(100)))
    }

    @Test func saysSomethingElse() async {
        #expect(await failure(of: sidecar("echo Hello; exec sleep 60")) == .badReadyLine("Hello"))
    }

    @Test func isNotThere() async {
        let sidecar = Sidecar(
            Launch(executable: URL(fileURLWithPath: "/nowhere/mlx-qwen3"), arguments: ["serve"]))
        guard case .notLaunched(let reason) = await failure(of: sidecar) else {
            return #expect(Bool(false), "it was launched")
        }
        #expect(reason.hasPrefix("/nowhere/mlx-qwen3: "))
    }

    @Test func aFullPipeStopsNothing() async throws {
        let flood = "head -c 1000000 /dev/zero | tr '\\0' x >&2\n"
        let sidecar = sidecar(flood + Self.sayReady + "\nexec sleep 60")
        await sidecar.start()
        _ = try await sidecar.ready()
        await sidecar.stop()
    }

    @Test func delaysGrow() {
        let launch = Launch(executable: URL(fileURLWithPath: "/bin/sh"), arguments: [])
        let delays = [1, 2, 3, 20].map { launch.delay(afterCrash: $0) }
        #expect(delays == [.seconds(0.5), .seconds(1), .seconds(2), .seconds(30)])
    }
}
