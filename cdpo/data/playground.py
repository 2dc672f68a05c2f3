"""The playground: a domain that cdpo makes itself, whose true ("gold") reward is known in closed form.

A prompt asks for two lists and forbids one word:

    list three birds then two metals without robin

A good answer is five words: three distinct birds, then two distinct metals, no robin, in a taste that is nowhere
written down: of each topic's 12 words 3 are fine, 4 good and 5 plain. What can be learned from examples: the topics,
to count, to keep the order, to obey. What only preferences tell: the taste.

Offline responses come from three kinds of writers, of whom none knows the taste well and all make mistakes (wrong
topic, repetition, the forbidden word, a wrong count, going on after the last word). Fine words are rare, and an answer
made of fine words alone is practically absent: the best answers can be reached only by putting together what no single
offline response shows. Mean gold on the 2,000 training prompts of seed 42: the best answers .97, chosen responses .41,
rejected ones .17, random words -.42; three of the 4,000 offline responses reach nine tenths of the best.

Of each pair the chosen one is drawn from the Bradley-Terry model (Bradley and Terry 1952) on gold:
P(first chosen) = sigmoid((gold(first) - gold(second)) / LABEL_TEMPERATURE).
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdpo.data.messages import Message, assistant, shown, user
from cdpo.errors import StepError
from cdpo.seeds import derive_seed

#: each topic's words, from the finest to the plainest: 3 fine, 4 good, 5 plain
TOPICS: dict[str, tuple[str, ...]] = {
    topic: tuple(words.split())
    for topic, words in {
        "birds": "heron kestrel wren lark owl swift finch robin crow gull pigeon sparrow",
        "metals": "osmium iridium cobalt silver titanium nickel brass iron copper tin lead zinc",
        "trees": "yew rowan hazel larch cedar alder maple oak pine birch ash elm",
        "fruits": "quince medlar fig plum apricot cherry mango apple pear banana grape lemon",
        "tools": "adze spokeshave awl chisel lathe rasp plane hammer saw drill pliers wrench",
        "fabrics": "damask brocade tweed velvet linen satin flannel cotton wool denim nylon felt",
        "colours": "ochre cerulean umber teal indigo crimson amber red blue green yellow white",
        "spices": "saffron sumac mace cumin clove nutmeg anise pepper salt ginger paprika mustard",
        "dances": "sarabande bourree pavane tango waltz jig rumba polka disco swing samba ballet",
        "boats": "felucca xebec dhow sloop schooner ketch yawl ferry canoe raft barge tug",
        "stones": "jasper beryl agate marble opal slate basalt granite chalk flint gravel sand",
        "games": "shogi mancala senet chess whist bridge rummy poker darts bingo tag snap",
    }.items()
}
NUMBERS = ("one", "two", "three", "four")
FUNCTION_WORDS = ("list", "then", "without")

FINE, GOOD, PLAIN = 1.0, 0.6, 0.3
#: what a word is worth where its topic is asked for
WORTH: dict[str, float] = {
    word: FINE if place < 3 else GOOD if place < 7 else PLAIN
    for words in TOPICS.values()
    for place, word in enumerate(words)
}
TOPIC_OF: dict[str, str] = {word: topic for topic, words in TOPICS.items() for word in words}
#: the mark of a word that should not be there
MISTAKE = -0.5
LABEL_TEMPERATURE = 0.1
#: (topics chosen in order) x (counts) x (the forbidden word: any of the two topics')
MOST_PROMPTS = 12 * 11 * 4 * 4 * 24

_PROMPT = re.compile(r"list (\w+) (\w+) then (\w+) (\w+) without (\w+)")


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: the topic of each place of the answer, and the forbidden word."""

    topics: tuple[str, ...]
    without: str


@dataclass(frozen=True)
class Writer:
    """A source of offline responses."""

    share: float
    #: the probability of a mistake, at each word and at each count
    mistakes: float
    #: how often a fine, a good and a plain word is taken
    taste: tuple[float, float, float]


WRITERS = (
    Writer(0.35, 0.03, (0.10, 0.45, 0.45)),
    Writer(0.40, 0.12, (0.05, 0.30, 0.65)),
    Writer(0.25, 0.30, (0.05, 0.20, 0.75)),
)


def vocabulary() -> list[str]:
    """Every word of prompts and responses, in a fixed order."""
    return [*FUNCTION_WORDS, *NUMBERS, *TOPICS, *TOPIC_OF]


def parse(prompt: Sequence[Message]) -> Request:
    """What the last user turn asks for. Raises StepError where the playground did not write it."""
    text = next((each["content"] for each in reversed(prompt) if each["role"] == "user"), "")
    match = _PROMPT.fullmatch(text.strip())
    if match:
        first, topic, second, other, without = match.groups()
        if first in NUMBERS and second in NUMBERS and topic in TOPICS and other in TOPICS:
            counts = (NUMBERS.index(first) + 1, NUMBERS.index(second) + 1)
            return Request((topic,) * counts[0] + (other,) * counts[1], without)
    raise StepError(
        f"the playground's gold reward is defined on its own prompts "
        f"('list two birds then one metals without crow'), not on {shown(text)}"
    )


def gold(prompt: Sequence[Message], response: str) -> float:
    """The true reward of any text as the response to a prompt of the playground, in [-1, 1].

    With n words asked for and the response's words w_1 ... w_m (split at white space):

        gold = max(-1, (sum_i mark(w_i)) / n)
        mark(w_i) = WORTH[w_i]  in {1, 0.6, 0.3}: i <= n, w_i is of the topic of place i, new, and not forbidden
                    MISTAKE = -0.5: any other word, the words after the n-th too

    A missing word marks 0. So an empty response has 0, the best ones (fine words only) exactly 1.
    """
    request = parse(prompt)
    words = response.split()
    total = 0.0
    for place, word in enumerate(words):
        fits = place < len(request.topics) and TOPIC_OF.get(word) == request.topics[place]
        total += WORTH[word] if fits and word != request.without and word not in words[:place] else MISTAKE
    return max(-1.0, total / len(request.topics))


def best(prompt: Sequence[Message]) -> str:
    """A response whose gold is the highest that this prompt allows."""
    request = parse(prompt)
    words: list[str] = []
    for topic in request.topics:
        words.append(next(word for word in TOPICS[topic] if word != request.without and word not in words))
    return " ".join(words)


def make(train: int, tune: int, evaluation: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Preference rows by split: prompt, chosen, rejected (messages), gold_chosen, gold_rejected.

    All prompts are distinct. A split keeps its rows when a later one in the order eval, tune, train grows.
    """
    sizes = {"eval": evaluation, "tune": tune, "train": train}
    if sum(sizes.values()) > MOST_PROMPTS // 2:
        raise StepError(
            f"the playground was asked for {sum(sizes.values())} distinct prompts and gives at most "
            f"{MOST_PROMPTS // 2}; lower `playground: {{train, tune, eval}}`"
        )
    prompts = _distinct_prompts(random.Random(derive_seed(seed, "playground", "prompts")))
    return {split: [_row(text, seed) for text in itertools.islice(prompts, size)] for split, size in sizes.items()}


def _distinct_prompts(rng: random.Random) -> Any:
    seen: set[str] = set()
    while True:
        topics = rng.sample(list(TOPICS), 2)
        counts = [rng.choice(NUMBERS) for _ in topics]
        # forbidding a word that writers like is the harder test
        without = _word(rng, rng.choice(topics), WRITERS[1].taste)
        text = f"list {counts[0]} {topics[0]} then {counts[1]} {topics[1]} without {without}"
        if text not in seen:
            seen.add(text)
            yield text


def _row(text: str, seed: int) -> dict[str, Any]:
    rng = random.Random(derive_seed(seed, "playground", "responses", text))
    prompt = [user(text)]
    first = _respond(rng, parse(prompt))
    second = first
    while second == first:
        second = _respond(rng, parse(prompt))
    golds = gold(prompt, first), gold(prompt, second)
    first_wins = rng.random() < 1 / (1 + math.exp((golds[1] - golds[0]) / LABEL_TEMPERATURE))
    order = (0, 1) if first_wins else (1, 0)
    return {
        "prompt": prompt,
        "chosen": [assistant((first, second)[order[0]])],
        "rejected": [assistant((first, second)[order[1]])],
        "gold_chosen": golds[order[0]],
        "gold_rejected": golds[order[1]],
    }


def _respond(rng: random.Random, request: Request) -> str:
    """One offline response of a writer drawn by share."""
    writer = rng.choices(WRITERS, [each.share for each in WRITERS])[0]
    words: list[str] = []
    for topic, run in itertools.groupby(request.topics):
        count = len(list(run))
        if rng.random() < writer.mistakes:
            count = max(1, count + rng.choice((-1, 1)))
        for _ in range(count):
            words.append(_next_word(rng, writer, topic, request.without, words))
    if rng.random() < writer.mistakes:
        words += [_word(rng, rng.choice(request.topics), writer.taste) for _ in range(rng.randint(1, 4))]
    return " ".join(words)


def _next_word(rng: random.Random, writer: Writer, topic: str, without: str, words: list[str]) -> str:
    if rng.random() < writer.mistakes:
        mistake = rng.choice(("other topic", "repetition", "forbidden"))
        if mistake == "other topic":
            return _word(rng, rng.choice(list(TOPICS)), writer.taste)
        if mistake == "forbidden" and without in TOPICS[topic]:
            return without
        if mistake == "repetition" and words:
            return rng.choice(words)
    while True:
        word = _word(rng, topic, writer.taste)
        if word != without and word not in words:
            return word


def _word(rng: random.Random, topic: str, taste: tuple[float, float, float]) -> str:
    words = TOPICS[topic]
    return rng.choice(rng.choices((words[:3], words[3:7], words[7:]), taste)[0])
