import Foundation
import Observation
import Qwen3Client

/// A conversation, as the window shows it.
@MainActor @Observable
final class ChatModel {
    /// A question, and what came of it.
    struct Turn: Identifiable {
        let id = UUID()
        let question: String
        var thinking = ""
        var answer = ""
        var note = ""  // how it ended, if not well
    }

    private(set) var turns: [Turn] = []
    private(set) var state = Sidecar.State.stopped
    /// What went wrong last; the banner shows it until it is dismissed.
    var problem: String?
    private(set) var answering = false

    @ObservationIgnored private var qwen: Qwen3?
    @ObservationIgnored private var reply: Task<Void, Never>?

    /// Start the sidecar, and follow its state for as long as the window is there.
    func run(_ launch: () throws -> Launch) async {
        do {
            let qwen = Qwen3(try launch())
            self.qwen = qwen
            await qwen.sidecar.start()
            for await state in qwen.sidecar.states { take(state) }
        } catch {
            problem = error.localizedDescription
        }
    }

    func restart() {
        guard let qwen else { return }
        Task { await qwen.sidecar.start() }
    }

    func send(_ question: String) {
        guard let qwen, !answering else { return }
        turns.append(Turn(question: question))
        answering = true
        problem = nil
        let request = ChatRequest(messages)
        reply = Task {
            await answer(qwen.stream(request))
            answering = false
        }
    }

    func stop() { reply?.cancel() }

    /// Stop the sidecar, and wait until it is gone.
    func close() async {
        reply?.cancel()
        await qwen?.sidecar.stop()
    }

    /// What the model is told: the conversation so far, without its thoughts.
    private var messages: [Message] {
        turns.flatMap { turn in
            turn.answer.isEmpty
                ? [Message.user(turn.question)]
                : [Message.user(turn.question), .assistant(turn.answer)]
        }
    }

    private func answer(_ events: AsyncThrowingStream<ChatEvent, any Error>) async {
        do {
            for try await event in events { take(event) }
            if Task.isCancelled { turns[turns.count - 1].note = "Stopped" }
        } catch {
            turns[turns.count - 1].note = "Failed"
            problem = error.localizedDescription
        }
    }

    private func take(_ event: ChatEvent) {
        let last = turns.count - 1
        switch event {
        case .thinking(let text): turns[last].thinking += text
        case .answer(let text): turns[last].answer += text
        case .toolCall: break  // this app offers no tools
        case .end(let ending): turns[last].note = ending.reason == "length" ? "Cut off" : ""
        }
    }

    private func take(_ state: Sidecar.State) {
        self.state = state
        switch state {
        case .restarting(let error), .failed(let error): problem = error.localizedDescription
        case .stopped, .starting, .ready: break
        }
    }
}
