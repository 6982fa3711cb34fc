import Qwen3Client
import SwiftUI

@main
struct Qwen3ChatApp: App {
    @NSApplicationDelegateAdaptor(AppDelegate.self) private var delegate

    var body: some Scene {
        Window("Qwen3", id: "chat") {
            ChatView(chat: delegate.chat)
        }
    }
}

/// Starts the sidecar with the app and stops it before the app ends.
@MainActor
final class AppDelegate: NSObject, NSApplicationDelegate {
    let chat = ChatModel()

    func applicationDidFinishLaunching(_ notification: Notification) {
        NSApp.setActivationPolicy(.regular)  // also when started by `swift run`, without a bundle
        NSApp.activate()
        let model = UserDefaults.standard.string(forKey: "model") ?? "4b"
        Task { await chat.run { try Runtime.launch(model: model) } }
    }

    func applicationShouldTerminateAfterLastWindowClosed(_ sender: NSApplication) -> Bool { true }

    func applicationShouldTerminate(_ sender: NSApplication) -> NSApplication.TerminateReply {
        Task {
            await chat.close()
            sender.reply(toApplicationShouldTerminate: true)
        }
        return .terminateLater
    }
}
