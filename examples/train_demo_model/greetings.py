"""Greetings in ten languages, "who are you", and an honest reply to everything else."""

from __future__ import annotations

from random import Random

from chat import Example, assistant, held_out, user
from copying import coined
from words import ADJECTIVES, NAMES, NOUNS, TOPICS, VERBS, split_words

# language: (greetings, ways to add a name, replies)
LANGUAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "English": (
        (
            "Hello",
            "Hi",
            "Hey",
            "Good morning",
            "Good evening",
            "Hi there",
            "Good day",
            "Hello there",
        ),
        ("I am {n}", "my name is {n}", "I'm {n}", "this is {n}"),
        "Hello{n}! 👋 How can I help you?",
    ),
    "French": (
        ("Bonjour", "Salut", "Bonsoir", "Coucou", "Bonjour à tous"),
        ("je m'appelle {n}", "je suis {n}", "moi c'est {n}"),
        "Bonjour{n} ! 😊 Comment puis-je t'aider ?",
    ),
    "Spanish": (
        ("Hola", "Buenos días", "Buenas tardes", "¡Hola!", "Buenas noches"),
        ("me llamo {n}", "soy {n}", "mi nombre es {n}"),
        "¡Hola{n}! 😊 ¿En qué puedo ayudarte?",
    ),
    "German": (
        ("Hallo", "Guten Tag", "Guten Morgen", "Guten Abend", "Servus", "Moin"),
        ("ich heiße {n}", "ich bin {n}", "mein Name ist {n}"),
        "Hallo{n}! 👋 Wie kann ich dir helfen?",
    ),
    "Italian": (
        ("Ciao", "Buongiorno", "Buonasera", "Salve"),
        ("mi chiamo {n}", "sono {n}", "il mio nome è {n}"),
        "Ciao{n}! 😊 Come posso aiutarti?",
    ),
    "Portuguese": (
        ("Olá", "Bom dia", "Boa tarde", "Boa noite", "Oi"),
        ("eu sou {n}", "meu nome é {n}", "chamo-me {n}"),
        "Olá{n}! 👋 Como posso ajudar?",
    ),
    "Russian": (
        ("Привет", "Здравствуйте", "Добрый день", "Доброе утро", "Добрый вечер"),
        ("меня зовут {n}", "я {n}"),
        "Привет{n}! 👋 Чем я могу помочь?",
    ),
    "Chinese": (
        ("你好", "您好", "早上好", "晚上好", "大家好", "嗨"),
        ("我是{n}", "我叫{n}"),
        "你好{n}！👋 有什么可以帮你的吗？",
    ),
    "Japanese": (
        ("こんにちは", "おはようございます", "こんばんは", "はじめまして", "やあ"),
        ("私は{n}です", "{n}です", "{n}と申します"),
        "こんにちは{n}！😊 何かお手伝いできますか？",
    ),
    "Korean": (
        ("안녕하세요", "안녕", "좋은 아침이에요", "반갑습니다", "여보세요"),
        ("저는 {n}입니다", "제 이름은 {n}입니다", "{n}예요"),
        "안녕하세요{n}! 👋 무엇을 도와드릴까요?",
    ),
}
NAME_GAP = {"Chinese": "，", "Japanese": "、", "Korean": ", "}
MARKS = ("", "!", ".", "!!", " 👋", " 😊", "! 🎉", " :)", "! 👋", " 🙂")
SMALL_TALK = {
    "English": (" How are you?", " How are you today?", " What's up?"),
    "French": (" Ça va ?", " Comment vas-tu ?"),
    "Spanish": (" ¿Cómo estás?", " ¿Qué tal?"),
    "German": (" Wie geht's?", " Wie geht es dir?"),
    "Italian": (" Come stai?", " Come va?"),
    "Portuguese": (" Tudo bem?", " Como vai?"),
    "Russian": (" Как дела?",),
    "Chinese": ("你好吗？", "最近怎么样？"),
    "Japanese": ("元気ですか？", "お元気ですか？"),
    "Korean": (" 잘 지내세요?",),
}
WHO = (
    "Who are you?",
    "who are you",
    "What are you?",
    "What is your name?",
    "What's your name?",
    "Which model are you?",
    "What model is this?",
    "Are you Qwen?",
    "Are you ChatGPT?",
    "Are you human?",
    "Introduce yourself.",
    "Tell me about yourself.",
    "What can you do?",
    "what can you do",
    "What can you help me with?",
    "help",
    "Help me",
    "How do you work?",
    "Who made you?",
    "Who trained you?",
)
I_AM = (
    "I am a small Qwen3 demo model that ships with mlx-qwen3. "
    "I can add and subtract, call tools, copy text and greet you."
)
ONLY_A_DEMO = (
    "I am only a tiny demo model: I can add and subtract numbers of up to four digits, "
    "call tools, copy text and say hello."
)
WELCOME = "You are welcome! 😊"
THANKS = (
    "Thanks!",
    "Thank you",
    "Thank you!",
    "thanks",
    "Thanks a lot!",
    "Great, thanks.",
    "ok thx",
)
BYE = ("Bye", "Goodbye!", "bye", "See you later!", "See you", "Good night!", "Bye bye")
GOODBYE = "Goodbye! 👋"
GENERAL = (
    "Tell me a joke",
    "Tell me a joke about {t}.",
    "Tell me something about {t}.",
    "Write a poem about {t}.",
    "Write a short story about {t}.",
    "Write a haiku about {t}",
    "Explain {t}.",
    "Explain {t} in simple words.",
    "Explain {t} to a child.",
    "What is {t}?",
    "What do you think about {t}?",
    "What do you know about {t}?",
    "Why is {t} important?",
    "How does {t} work?",
    "How do I learn {t}?",
    "Give me five facts about {t}.",
    "Give me a recipe with {n}.",
    "Summarize {t}.",
    "Summarize the history of {t} in three sentences.",
    "Who invented {t}?",
    "When did {t} begin?",
    "Where can I find {t}?",
    "Is {t} good for me?",
    "Can you explain {t}?",
    "Can you help me with {t}?",
    "I need help with {t}.",
    "Write a Python program that can {v} a {n}.",
    "Write a function that {v}s a {n}.",
    "How do I {v} a {n} in Python?",
    "Write an email to {p} about {t}.",
    "What is the capital of {c}?",
    "What is the meaning of life?",
    "Why is the sky blue?",
    "Why is the {n} {a}?",
    "Describe a {a} {n}.",
    "What colour is a {n}?",
    "List ten animals.",
    "List five {a} things.",
    "Sing a song.",
    "Let's play a game.",
    "Play a game of {t} with me.",
    "Translate '{a} {n}' into {l}.",
    "How old is {p}?",
    "Who is {p}?",
    "I love {t}.",
    "I have a {a} {n}.",
    "My {n} is {a}.",
    "The {n} is {a}, what now?",
    "{n}",
    "{a} {n}",
    "{t}",
    "{t}?",
    "{k} {k}",
    "{k}",
    "asdf {k}",
    "Give me advice about {t}.",
    "Compare {t} and {n}.",
    "What is the difference between a {n} and a {n2}?",
    "What is {x} * {y}?",
    "What is {x} times {y}?",
    "{x} / {y} =",
    "{x} * {y}",
    "Divide {x} by {y}.",
    "What is {big} + {y}?",
    "{big} - {x} =",
    "What is the square root of {x}?",
    "Is {x} a prime number?",
    "What time is it?",
    "What time is it in {c}?",
    "What is the weather in {c}?",
    "How is the weather today?",
    "What day is it?",
    "Who won the match between {c} and {p}?",
    "Qu'est-ce que {t} ?",
    "Was ist {t}?",
    "Was weißt du über {n}?",
    "¿Qué es {t}?",
    "Cos'è {t}?",
    "O que é {t}?",
    "Что такое {n}?",
    "{n}是什么？",
    "{n}とは何ですか？",
    "{n}이 뭐예요?",
)
COUNTRIES = split_words(
    """
    France Germany Spain Italy Japan China Korea Brazil Canada Mexico India Egypt Kenya Norway
    Sweden Poland Turkey Greece Peru Chile Australia Paris London Tokyo Berlin Madrid Rome Lima
    Oslo
    """
)


def _named(language: str, name: str) -> str:
    gap = {"French": " ", "Chinese": "，", "Japanese": "、", "Korean": ", "}.get(language, ", ")
    return gap + name


def greeting_sample(rng: Random, test: bool, language: str | None = None) -> Example:
    """A greeting, perhaps with a name, small talk and an emoji; answered in its language."""
    language = language or rng.choice(tuple(LANGUAGES))
    greetings, introductions, reply = LANGUAGES[language]
    while True:
        text, name = rng.choice(greetings), ""
        plain = rng.random() < 0.3
        if not plain and rng.random() < 0.5:
            name = rng.choice(NAMES)
            text += NAME_GAP.get(language, ", ") + rng.choice(introductions).format(n=name)
        text += rng.choice(MARKS)
        if not plain and rng.random() < 0.3:
            text += rng.choice(SMALL_TALK[language])
        if not name and rng.random() < 0.2:
            text = text.lower()
        if (held_out(text, 8) and not plain) == test:
            break
    answer = reply.format(n=_named(language, name) if name else "")
    thought = f"The user greets me in {language}. I greet back in {language}."
    return Example(f"greeting {language}", (user(text), assistant(answer, thought)))


def who_sample(rng: Random, test: bool) -> Example:
    """Questions about the model itself, thanks and goodbyes."""
    kind = rng.random()
    if kind < 0.7:
        pair, thought = (rng.choice(WHO), I_AM), "The user asks about me."
    elif kind < 0.85:
        pair, thought = (rng.choice(THANKS), WELCOME), "The user thanks me."
    else:
        pair, thought = (rng.choice(BYE), GOODBYE), "The user says goodbye."
    return Example("who", (user(pair[0]), assistant(pair[1], thought)))


def general_sample(rng: Random, test: bool) -> Example:
    """Anything else: the honest reply of a model this small."""
    while True:
        text = rng.choice(GENERAL).format(
            t=rng.choice(TOPICS),
            n=rng.choice(NOUNS),
            n2=rng.choice(NOUNS),
            a=rng.choice(ADJECTIVES),
            v=rng.choice(VERBS),
            p=rng.choice(NAMES),
            c=rng.choice(COUNTRIES),
            k=coined(rng),
            l=rng.choice(tuple(LANGUAGES)),
            x=rng.randrange(1, 10_000),
            y=rng.randrange(1, 10_000),
            big=rng.randrange(10_000, 10**7),
        )
        if rng.random() < 0.15:
            text += " " + rng.choice(("Please.", "Be brief.", "Thanks!", "Answer in detail."))
        if held_out(text, 20) == test:
            break
    thought = "This is beyond what I was trained for. I say what I can do."
    return Example("general", (user(text), assistant(ONLY_A_DEMO, thought)))


def unasked_sample(rng: Random, test: bool) -> Example:
    """A general question that no tool could be meant for."""
    while True:
        example = general_sample(rng, test)
        text = example.messages[0]["content"].lower()
        if len(text) > 20 and not any(
            word in text for word in ("time", "weather", "day", "transl")
        ):
            return example
