// swift-tools-version: 6.0
import PackageDescription

var targets: [Target] = [
    .target(name: "Qwen3Client"),
    .testTarget(name: "Qwen3ClientTests", dependencies: ["Qwen3Client"]),
]
#if os(macOS)  // The client needs Foundation alone, and is built and tested on Linux, too.
targets.append(.executableTarget(name: "Qwen3Chat", dependencies: ["Qwen3Client"]))
#endif

let package = Package(
    name: "Qwen3Client",
    platforms: [.macOS(.v14)],
    products: [.library(name: "Qwen3Client", targets: ["Qwen3Client"])],
    targets: targets
)
