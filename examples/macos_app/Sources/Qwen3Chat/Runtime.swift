import Foundation
import Qwen3Client

/// Where the sidecar's program and its files are.
enum Runtime {
    /// The Python that `bundle.sh` puts into the app; without one, what QWEN3_EXECUTABLE names
    /// (a path to `mlx-qwen3`), for `swift run`.
    static func launch(model: String) throws -> Launch {
        var launch: Launch
        let python = Bundle.main.resourceURL?.appendingPathComponent("runtime/bin/python3")
        if let python, FileManager.default.isExecutableFile(atPath: python.path) {
            // -I: nothing of the user's Python. -B: writing into a signed bundle breaks its seal.
            let arguments = ["-I", "-B", "-m", "mlx_qwen3.cli", "serve", "--model", model]
            launch = Launch(executable: python, arguments: arguments)
            launch.environment = try folders()
        } else {
            let path = ProcessInfo.processInfo.environment["QWEN3_EXECUTABLE"]
            guard let path else { throw Missing() }
            let program = URL(fileURLWithPath: path)
            launch = Launch(executable: program, arguments: ["serve", "--model", model])
        }
        launch.readyTimeout = .seconds(3600)  // the first start downloads
        return launch
    }

    /// Weights in Application Support, where nothing deletes them; what can be made again in Caches.
    private static func folders() throws -> [String: String] {
        let files = FileManager.default
        let weights = try folder(.applicationSupportDirectory, "Qwen3Chat/models", files)
        let cache = try folder(.cachesDirectory, "Qwen3Chat", files)
        return [
            "HF_HUB_CACHE": weights.path,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MLX_QWEN3_CACHE": cache.path,
        ]
    }

    private static func folder(
        _ place: FileManager.SearchPathDirectory, _ name: String, _ files: FileManager
    ) throws -> URL {
        let parent = try files.url(for: place, in: .userDomainMask, appropriateFor: nil, create: true)
        var folder = parent.appendingPathComponent(name, isDirectory: true)
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true  // gigabytes that can be had again
        try folder.setResourceValues(values)
        return folder
    }

    private struct Missing: LocalizedError {
        var errorDescription: String? {
            "There is no runtime in this app. Make one with bundle.sh, or set QWEN3_EXECUTABLE."
        }
    }
}
