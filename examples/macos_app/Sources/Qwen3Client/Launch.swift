import Foundation

/// How the sidecar is started, and for how long it is waited.
public struct Launch: Sendable {
    public var executable: URL
    public var arguments: [String]
    /// On top of the app's own environment.
    public var environment: [String: String] = [:]
    /// From start to ready line. The model is loaded meanwhile, and where it is not on this machine
    /// downloaded before: an app that brings no weights allows more.
    public var readyTimeout: Duration = .seconds(120)
    /// After a crash; doubled after each that follows within a minute, up to half a minute.
    public var restartDelay: Duration = .milliseconds(500)
    /// Crashes in a row after which it stays down.
    public var maxRestarts = 5
    /// How long `stop` lets replies finish before it kills.
    public var stopTimeout: Duration = .seconds(5)

    /// executable: `mlx-qwen3`, or a Python that has it. arguments: what comes before the options
    /// of the handshake, which are added here: `["serve", "--model", "4b"]`
    /// or `["-I", "-B", "-m", "mlx_qwen3.cli", "serve", "--model", "4b"]`.
    public init(executable: URL, arguments: [String]) {
        self.executable = executable
        self.arguments = arguments
    }

    var allArguments: [String] {
        let parent = String(ProcessInfo.processInfo.processIdentifier)
        return arguments + ["--port", "0", "--ready-json", "--parent-pid", parent]
    }

    var fullEnvironment: [String: String] {
        ProcessInfo.processInfo.environment.merging(environment) { _, own in own }
    }

    func delay(afterCrash number: Int) -> Duration {
        min(restartDelay * (1 << min(number - 1, 10)), max(restartDelay, .seconds(30)))
    }
}
