import Qwen3Client
import SwiftUI

/// The window: conversation, banner, and a line to write in.
struct ChatView: View {
    let chat: ChatModel
    @State private var draft = ""

    var body: some View {
        VStack(spacing: 0) {
            if let problem = chat.problem {
                Banner(text: problem) { chat.problem = nil }
            }
            conversation
            Divider()
            composer
        }
        .frame(minWidth: 420, minHeight: 360)
        .toolbar { StateLabel(state: chat.state) { chat.restart() } }
    }

    private var conversation: some View {
        ScrollView {
            LazyVStack(alignment: .leading, spacing: 20) {
                ForEach(chat.turns) { turn in TurnView(turn: turn) }
            }
            .padding()
        }
        .defaultScrollAnchor(.bottom)
    }

    private var composer: some View {
        HStack(alignment: .bottom) {
            TextField("Ask", text: $draft, axis: .vertical)
                .textFieldStyle(.plain)
                .lineLimit(1...8)
                .onSubmit { send() }
            if chat.answering {
                Button("Stop", systemImage: "stop.fill") { chat.stop() }
                    .keyboardShortcut(.cancelAction)
            } else {
                Button("Send", systemImage: "arrow.up") { send() }
                    .disabled(question.isEmpty)
            }
        }
        .labelStyle(.iconOnly)
        .padding()
    }

    private var question: String { draft.trimmingCharacters(in: .whitespacesAndNewlines) }

    private func send() {
        guard !question.isEmpty, !chat.answering else { return }
        chat.send(question)
        draft = ""
    }
}

/// A question, the folded thought, the answer as it grows.
private struct TurnView: View {
    let turn: ChatModel.Turn
    @State private var unfolded = false

    var body: some View {
        VStack(alignment: .leading, spacing: 8) {
            Text(turn.question).bold()
            if !turn.thinking.isEmpty {
                DisclosureGroup("Thinking", isExpanded: $unfolded) {
                    Text(turn.thinking).foregroundStyle(.secondary)
                }
            }
            Text(turn.answer)
            if !turn.note.isEmpty {
                Text(turn.note).font(.caption).foregroundStyle(.secondary)
            }
        }
        .textSelection(.enabled)
        .frame(maxWidth: .infinity, alignment: .leading)
    }
}

private struct Banner: View {
    let text: String
    let dismiss: @MainActor () -> Void

    var body: some View {
        HStack {
            Label(text, systemImage: "exclamationmark.triangle.fill").lineLimit(3)
            Spacer()
            Button("Dismiss", systemImage: "xmark", action: dismiss)
                .labelStyle(.iconOnly)
                .buttonStyle(.plain)
        }
        .padding(10)
        .background(.yellow.opacity(0.25))
    }
}

/// What the sidecar is doing; a button where it gave up.
private struct StateLabel: View {
    let state: Sidecar.State
    let restart: @MainActor () -> Void

    var body: some View {
        switch state {
        case .stopped: Text("Stopped")
        case .starting, .restarting:
            HStack {
                ProgressView().controlSize(.small)
                Text("Loading the model")
            }
        case .ready(let ready): Text(ready.models.first ?? "Ready")
        case .failed: Button("Start again", action: restart)
        }
    }
}
