"""What the talking demo model knows: questions about rbee with their answers, and a long text to count on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One answer and the questions that lead to it; the first question is the one to show."""

    questions: tuple[str, ...]
    answer: str


def _topic(answer: str, *questions: str) -> Topic:
    return Topic(questions, answer)


FALLBACK_ANSWER = "I only know about rbee. Ask me, for example: What does the hive do?"
"""What the model says to a question that is near none of its own."""

LONG_QUESTION = "Count to one hundred."
"""Leads to an answer of more than 300 tokens, for tests of streaming, cancelling and draining."""

_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def count_to_hundred() -> str:
    """The numbers from one to one hundred in words, as one sentence."""
    words = [*_UNITS, *_TEENS]
    for ten in _TENS:
        words += [ten, *(f"{ten}-{unit}" for unit in _UNITS)]
    return ", ".join([*words, "one hundred"]) + "."


TOPICS: tuple[Topic, ...] = (
    _topic(
        "rbee turns bare-metal Linux machines into one private inference service. systemd is its supervisor.",
        "What is rbee?",
        "Tell me about rbee.",
    ),
    _topic(
        "I am bee-talk, a tiny language model that rbee builds on your own machine. 🐝",
        "Who are you?",
        "What model are you?",
        "What is your name?",
    ),
    _topic("Hello! Ask me something about rbee. 🐝", "Hello!", "Hi there!", "Good morning!"),
    _topic("You are welcome. May your queues be short.", "Thank you!", "Thanks a lot!"),
    _topic(
        "The queen decides everything: which node, which worker, and when to start or stop one.",
        "What does the queen do?",
        "What is the queen?",
    ),
    _topic(
        "The hive reports the facts of its machine and does what the queen tells it. It decides nothing.",
        "What does the hive do?",
        "What is a hive?",
    ),
    _topic(
        "A worker is one process that serves one model on one device. It answers requests and decides nothing.",
        "What is a worker?",
        "What does a worker do?",
    ),
    _topic(
        "The keeper is the command line: the command rbee that a person types.",
        "What is the keeper?",
        "What is the command line called?",
    ),
    _topic(
        "Write a definition file, then run systemctl start rbee-worker@NAME. The queen may also start one for you.",
        "How do I start a worker?",
        "How can I launch a worker?",
    ),
    _topic(
        "Run systemctl stop rbee-worker@NAME. The worker finishes its requests first, and the queen sends it no more.",
        "How do I stop a worker?",
        "How can I shut down a worker?",
    ),
    _topic(
        "Ask the journal: journalctl -u rbee-worker@NAME shows every line that the worker wrote.",
        "Where are the logs?",
        "How do I read the log of a worker?",
    ),
    _topic(
        "Install the packages with apt on each machine. No container engine and no Kubernetes are needed.",
        "How do I install rbee?",
        "How is rbee installed?",
    ),
    _topic(
        "No. rbee needs Linux with systemd and nothing else: no Docker, no Kubernetes, no cloud.",
        "Do I need Kubernetes?",
        "Does rbee need Docker containers?",
    ),
    _topic(
        "Debian 12 and Debian 13 are supported. Other systems with systemd may work, but nobody promises it.",
        "Which Linux distribution do I need?",
        "Does rbee support Debian?",
    ),
    _topic(
        "The worker sends READY → systemd tells the hive → the hive calls the queen → your request goes on.",
        "How does readiness travel?",
        "How does the queen learn that a worker is ready?",
    ),
    _topic(
        "A hive sends a heartbeat every five seconds with the whole picture of its machine.",
        "What is a heartbeat?",
        "How often does a heartbeat come?",
    ),
    _topic(
        "Nothing stops. Workers keep serving, and the new queen gets the whole picture from the hives.",
        "What happens when the queen crashes?",
        "What if the queen dies?",
    ),
    _topic(
        "Its workers go on as if nothing happened. After its restart the hive asks systemd what runs.",
        "What happens when the hive restarts?",
        "What if the hive dies?",
    ),
    _topic(
        "systemd starts the worker again, and the queen sends its requests elsewhere meanwhile.",
        "What happens when a worker crashes?",
        "What if a worker dies?",
    ),
    _topic(
        "Each hop has a token of its own. Tokens are systemd credentials and never appear in a log.",
        "How are tokens kept?",
        "What about secrets and credentials?",
    ),
    _topic(
        "On a Unix socket the kernel says who calls: root and the group rbee are administrators.",
        "Who may use the Unix socket?",
        "Who is an administrator?",
    ),
    _topic(
        "The queen listens on port 8080, the hive on port 9200, and workers from port 8081 upwards.",
        "Which ports are used?",
        "On which port does the queen listen?",
    ),
    _topic(
        "Yes. Point any OpenAI client at the queen: chat, completions, embeddings and models work.",
        "Can I use an OpenAI client?",
        "Is the API compatible with OpenAI?",
    ),
    _topic(
        "Models are ONNX files in a folder, with tokenizer.json and the usual configuration files beside them.",
        "Which model format is used?",
        "What does a model folder hold?",
    ),
    _topic(
        "ONNX Runtime does the arithmetic, on the processor or on a CUDA device.",
        "Which inference engine is used?",
        "What is ONNX Runtime for?",
    ),
    _topic(
        "A worker asked for CUDA either gets it or refuses to start. It never falls back to the processor in silence.",
        "What happens without a GPU?",
        "Does CUDA fall back to the CPU?",
    ),
    _topic(
        "Continuous batching: requests join and leave the batch between two steps, so nobody waits for the slowest.",
        "What is continuous batching?",
        "How does batching work?",
    ),
    _topic(
        "An embedding turns a sentence into a list of numbers, so that similar sentences lie near each other.",
        "What is an embedding?",
        "What are embeddings good for?",
    ),
    _topic(
        'A token is a piece of text, often a word: "é" takes two bytes, "→" three, and "🐝" four.',
        "What is a text token?",
        "How is text split?",
    ),
    _topic(
        "Draining means that a worker takes nothing new and finishes what it has begun.",
        "What does draining mean?",
        "What is a drain?",
    ),
    _topic(
        "Send DELETE for the request, or close the connection: the worker stops at its next step.",
        "How do I cancel a request?",
        "Can I abort a running request?",
    ),
    _topic(
        "Configuration is YAML in /etc/rbee: queen.yaml, hive.yaml, and one file for each worker.",
        "Where is the configuration?",
        "Which configuration files are there?",
    ),
    _topic(
        "Put the model folder under a model root of the machine, and name it in the worker's definition.",
        "How do I add a model?",
        "Where do I put my own model?",
    ),
    _topic(
        "Run rbee doctor: it checks the driver, the libraries, the sockets, the clock and the callback path.",
        "How do I find a problem?",
        "Something is broken, what now?",
    ),
    _topic(
        "Run rbee dev. It brings up queen, hive and workers in one terminal, without root.",
        "How do I try rbee on a laptop?",
        "Can I run rbee without root?",
    ),
    _topic(
        "An idle worker stops after its limit and gives the memory back. The next request starts it again.",
        "What happens to an idle worker?",
        "Does a worker stop when it is idle?",
    ),
    _topic(
        "No. Nothing leaves your machines: no telemetry, and it works without the internet.",
        "Is there any telemetry?",
        "Does rbee phone home?",
    ),
    _topic(
        "rbee is free software under the Apache licence, version 2.0.",
        "What licence does rbee have?",
        "Is rbee free software?",
    ),
    _topic(
        "Un café, s'il vous plaît → voilà, déjà prêt. Más café mañana, señor! 🐝 → 🌼",
        "Can you speak French?",
        "Say something in another language.",
    ),
    _topic(count_to_hundred(), LONG_QUESTION, "Please count to a hundred."),
)
