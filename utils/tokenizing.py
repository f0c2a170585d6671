"""Text to token ids, many at a time and without Python lists in between."""

import numpy as np


class FlatTokenizer:
    """Tokenize many texts into one flat array of ids with offsets, without special tokens.

    Encodes with nanotoken (WordPiece) or gigatoken (BPE) where one is installed, takes the tokenizer, and agrees with
    the model's own tokenizer on every text that it is held against; else with the model's own. Can be pickled.

    Args:
        tokenizer: the model's own tokenizer, of transformers.
        samples: texts on which a fast library must agree, besides a fixed set of awkward ones.
        log: called with one line where a fast library is passed over.
    """

    AWKWARD = (
        "", " ", "Hello, world!  It's a test-case: 3.14 (or so)…", "naïve café Ångström ﬁne ﬀ ß ẞ İ ı ς Σ",
        "e\u0301a\u0308 \u0301 x\u0327\u0301", "中文字符和English混合。日本語カタカナ 한국어", "नमस्ते दुनिया ไทย العربية עברית",
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️", "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen", "tab\tfeed\x0c vt\x0b nul\x00 bel\x07 del\x7f",
        "nbsp\u00a0em\u2003line\u2028para\u2029nel\x85", "\u0378\ufffe\U000e0001\U0010ffff\ue000", "x" * 99, "y" * 100, "z" * 101, "w" * 200,
        "[MASK] [mask] x[MASK]y [SEP][CLS] [UNK] [PAD] <mask> a<mask>b <s> </s> <unk> <pad>", "##ing # #a ▁x Ġy Ċ",
        "  leading and trailing  ", "UPPER lower MiXeD ÀÉÎ ЁЖ", "$100 €5 £3 ¥2 a_b@c.de http://x.y/z?q=1&r=2", "''``--...!!!???",
    )  # fmt: skip

    def __init__(self, tokenizer, samples, log):
        self.tokenizer, self.encode = tokenizer, None
        texts = [*self.AWKWARD, *samples]
        # Added tokens are where fast libraries stumble: alone, inside a word, and between blanks.
        texts += [text for token in tokenizer.added_tokens_decoder.values() for text in
                  (token.content, f"a{token.content}b", f"a {token.content} b {token.content.upper()}")]
        expected_ids, expected_offsets = self.encode_with("transformers")(texts)
        for self.name in ("nanotoken", "gigatoken", "tokenizers"):
            try:
                ids, offsets = self.encode_with(self.name)(texts)
                if np.array_equal(ids, expected_ids) and np.array_equal(offsets, expected_offsets):
                    return
                log(f"{self.name} is not used: its ids differ from the model's own tokenizer")
            except ImportError:
                pass  # optional
            except Exception as error:  # whatever a young library stumbles over: the tokenizer's own way remains
                if self.name == "tokenizers" or "nsupported" not in f"{type(error).__name__}{error}":
                    log(f"{self.name} is not used: {type(error).__name__}: {str(error)[:100]}")
        self.name = "transformers"

    def encode_with(self, name):
        """Build the function that turns a list of texts into ids (tokens,) and offsets (texts + 1,)."""
        tokenizer = self.tokenizer
        if name == "transformers":
            def rows_of(texts):
                return tokenizer(texts, add_special_tokens=False, return_attention_mask=False,
                                 return_token_type_ids=False, verbose=False)["input_ids"]
        elif name == "tokenizers":
            from tokenizers import Tokenizer

            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            backend.no_truncation()
            backend.no_padding()

            def rows_of(texts):
                return [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
        elif name == "nanotoken":
            import nanotoken

            fast = nanotoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts, add_special_tokens=False)
                return rows.ids.astype(np.int32), rows.offsets

            return encode
        else:
            import awkward
            import gigatoken

            fast = gigatoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts)
                lengths = awkward.to_numpy(awkward.num(rows))
                return awkward.to_numpy(awkward.flatten(rows)).astype(np.int32), np.concatenate([[0], lengths.cumsum()])

            return encode

        def encode_rows(texts):
            rows = rows_of(texts)
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
            return np.fromiter((i for row in rows for i in row), dtype=np.int32, count=offsets[-1]), offsets

        return encode_rows

    def __getstate__(self):
        return {**self.__dict__, "encode": None}  # made anew in each data worker: the fast libraries do not pickle

    def __call__(self, texts):
        """Tokenize a list of texts: int32 ids (tokens,) and int64 offsets (texts + 1,) into them."""
        if self.encode is None:
            self.encode = self.encode_with(self.name)
        return self.encode(texts)
