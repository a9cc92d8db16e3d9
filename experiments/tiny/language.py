"""The small language: a mixture of the tasks' sentences, in rows of word-level tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from experiments.tasks import TASKS
from experiments.tasks.task import Sentence, Split
from experiments.tasks.words import YEARS, content_words

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"  # ids 0 to 3, as in Gemma
LONG_ROW = 48  # tokens with BOS: three sliding windows

# Share of each task among the sentences; the ones that are learned slowly have the large ones.
# Induction is not here: its sequences fill long rows of their own.
SHARES = {
    "ioi": 0.34,
    "agreement_simple": 0.03,
    "agreement_pp": 0.06,
    "agreement_rc": 0.09,  # with the sentences of agreement_within_rc
    "greater_than": 0.24,
    "pronouns": 0.05,
    "city_country": 0.07,
    "country_capital": 0.04,
    "city_capital": 0.08,
}
# The opening steps see these alone. Among everything else IOI stays at one half for thousands of
# steps: heads that copy names form first, and learn to keep away from the repeated one.
OPENING_SHARES = {"ioi": 0.5, "greater_than": 0.5}
INDUCTION_SHARE = 0.8  # of the long rows
# The loss is dominated by words that nobody can predict (which verb, which place). Answers count
# more, words drawn at random less: without this, induction and IOI take several times as long.
ANSWER_WEIGHT, RANDOM_WEIGHT = 5.0, 0.1


@cache
def vocabulary() -> list[str]:
    """Every word of the language; its place in the list is its id."""
    rng = Random(0)
    samples = (
        word
        for task in TASKS.values()
        for sentence in islice(task.sentences(rng), 500)
        for word in sentence.text.split()
    )
    known = [*content_words(), *YEARS]
    grammar = sorted(set(samples) - set(known))
    return list(dict.fromkeys([PAD, EOS, BOS, UNK, *grammar, *known]))


@cache
def token_ids() -> dict[str, int]:
    """The id of every word."""
    return {word: index for index, word in enumerate(vocabulary())}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer in Hugging Face's format: BOS first, padding on the right."""
    ids = token_ids()
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        padding_side="right",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def sentences(
    rng: Random, split: Split = "train", shares: Mapping[str, float] = SHARES
) -> Iterator[Sentence]:
    """Sentences of all tasks in `shares`, without end."""
    writers = {name: TASKS[name].sentences(rng, split) for name in shares}
    while True:
        for name in rng.choices(list(shares), weights=list(shares.values()), k=256):
            yield next(writers[name])


def long_rows(rng: Random, split: Split = "train") -> Iterator[list[Sentence]]:
    """Rows near the longest length: an induction sequence, or several sentences."""
    texts, sequences = sentences(rng, split), TASKS["induction"].sentences(rng, split)
    while True:
        if rng.random() < INDUCTION_SHARE:
            yield [next(sequences)]
            continue
        row, length = [next(texts)], 1
        while (length := length + len(row[-1].text.split())) < LONG_ROW:
            row.append(next(texts))
        yield row[:-1]


def example_texts(n: int = 400, seed: int = 0) -> list[str]:
    """Different held-out sentences, as many of each task."""
    texts: dict[str, None] = {}
    each = -(-n // len(TASKS))
    for name, task in TASKS.items():
        wanted = len(texts) + each
        for sentence in task.sentences(Random(f"{name} {seed}"), "heldout"):
            texts[sentence.text] = None
            if len(texts) == wanted:
                break
    return list(texts)[:n]


def encode(texts: list[str]) -> Tensor:
    """Token ids [row, pos], BOS first, padded on the right: the tokenizer's, only faster."""
    ids = token_ids()
    return _padded([[ids[BOS], *(ids[word] for word in text.split())] for text in texts], ids[PAD])


@dataclass(frozen=True)
class Rows:
    """What one pass of the training reads.

    Attributes:
        ids: Token ids [row, pos].
        weights: Of each token in the loss, [row, pos].
        choices: Row, position and ids of the tokens of which any could stand there.
    """

    ids: Tensor
    weights: Tensor
    choices: tuple[tuple[int, int, tuple[int, ...]], ...]


def encode_rows(rows: list[list[Sentence]]) -> Rows:
    """Rows of one or several sentences, ready for training."""
    texts = [" ".join(sentence.text for sentence in row) for row in rows]
    weights = [
        [0.0, *(weight for sentence in row for weight in _weights(sentence))] for row in rows
    ]
    ids = token_ids()
    choices = []
    for number, row in enumerate(rows):
        start = 1  # after BOS
        for sentence in row:
            if sentence.choices:
                (place,) = sentence.answers
                words = tuple(ids[word] for word in sentence.choices)
                choices.append((number, start + place, words))
            start += len(sentence.text.split())
    return Rows(encode(texts), _padded(weights, 0.0), tuple(choices))


def _weights(sentence: Sentence) -> list[float]:
    other = RANDOM_WEIGHT if sentence.random else 1.0
    n_words = len(sentence.text.split())
    return [ANSWER_WEIGHT if place in sentence.answers else other for place in range(n_words)]


def _padded(rows: list[list], filler: float) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
