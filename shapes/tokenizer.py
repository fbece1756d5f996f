"""A `CLIPTokenizer` for which every word of a given list is one token."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

END_OF_WORD = "</w>"


def make_tokenizer(words: list[str], max_length: int) -> CLIPTokenizer:
    """Byte-pair merges learned on the words until each is one token, on top of the full byte alphabet.

    Words outside the list are spelled in bytes, as in CLIP's own tokenizer. The end-of-text token has the highest id,
    by which CLIP's text models find it. The same list gives the same tokenizer.
    """
    merges = learn_merges(words)
    alphabet = list(bytes_to_unicode().values())
    tokens = alphabet + [byte + END_OF_WORD for byte in alphabet]
    tokens += [first + second for first, second in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merge_list = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        merge_list.write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in merges))
        return CLIPTokenizer(str(vocabulary), str(merge_list), model_max_length=max_length)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Repeatedly merges the most frequent pair of neighbours, ties broken alphabetically.

    Implemented here because the library's trainer breaks ties at random: token ids, and with them the meaning of a
    trained embedding, would change from process to process.
    """
    spelled = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges = []
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in spelled:
            for k in range(len(parts) - 2, -1, -1):
                if (*parts[k : k + 2],) == best:
                    parts[k : k + 2] = ["".join(best)]
    return merges
