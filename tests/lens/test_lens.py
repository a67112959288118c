"""The lens: its numbers are those of a naive computation, its page shows them and runs nothing that a token says."""

import json
import re
import unicodedata
import weakref
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import naive
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from browser import Browser
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import SPECIAL, ids_of, text, tokenizer
from torch import nn

from anydepth import Stack
from anydepth.core.heads import separate_heads
from anydepth.errors import DataError, ModelError, NonFiniteStates, TraceFileError, UnsupportedHead
from anydepth.lens import lens
from anydepth.lens.lens import NOTHING, Lens
from anydepth.models.loaded import LoadedModel
from anydepth.report import theme
from anydepth.report.pages import lens as shown

pytestmark = pytest.mark.usefixtures("charts_checked")

HOSTILE = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"quoted' & <b>", "{{ 7*7 }}")
UNSEEN = (" ", "\n", "\t", "\x00", "\x7f", "\u202e", "\u200b", "\xa0", "\ud800", "")


def masked() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(tiny_models._text_config("bert", tiny_models.ENCODERS["bert"])).eval()


def small(**changes) -> Lens:
    """A lens with numbers of one's own: two blocks, three positions."""
    values = {
        "tokens": ("a", " b", " c"),
        "targets": (" b", " c", None),
        "top": ((" x", " x", " x"), (" b", " x", " x"), (" b", " c", " x")),
        "top_id": np.array([[9, 9, 9], [1, 9, 9], [1, 2, 9]]),
        "probability": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]),
        "entropy": np.full((3, 3), 1.5),
        "target_id": np.array([1, 2, NOTHING]),
        "target_probability": np.array([[0.5, 0.5, np.nan], [0.5, 0.125, np.nan], [1.0, 0.25, np.nan]]),
        "target_rank": np.array([[3, 3, NOTHING], [1, 3, NOTHING], [1, 1, NOTHING]]),
        "next_token": True,
    }
    return Lens(**values | changes)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "anatomy"), [("gpt2", naive.GPT2), ("llama", naive.LLAMA), ("qwen3", naive.LLAMA)])
def test_every_number_is_that_of_the_logits_taken_one_by_one(name, anatomy):
    model, _ = tiny_models.build(name)
    words = text()
    found = Lens.of(Stack(model), words, tokenizer())
    ids = ids_of(words)
    _, logits = naive.alone(model, ids, anatomy)
    depths, count, _ = logits.shape
    assert found.top_id.shape == (depths, count) == (tiny_models.BLOCKS + 1, len(ids))
    for k in range(depths):
        for t in range(count):
            shares = np.exp(logits[k, t] - logits[k, t].max())
            shares /= shares.sum()
            assert found.top_id[k, t] == int(shares.argmax())
            assert found.top[k][t].strip() in (f"w{shares.argmax():02}", *SPECIAL)
            assert found.probability[k, t] == pytest.approx(shares.max(), abs=1e-5)
            assert found.entropy[k, t] == pytest.approx(-sum(p * np.log(p) for p in shares if p), abs=1e-5)
            if t + 1 < count:
                target = int(ids[t + 1])
                assert found.target_id[t] == target
                assert found.target_probability[k, t] == pytest.approx(shares[target], abs=1e-5)
                assert found.target_rank[k, t] == 1 + sum(p > shares[target] for p in shares)
            else:
                assert found.targets[t] is None
                assert (found.target_id[t], found.target_rank[k, t]) == (NOTHING, NOTHING)
                assert np.isnan(found.target_probability[k, t])
    right = [shares_of(logits[k, t])[ids[t + 1]] for k in range(depths) for t in range(count - 1)]
    nats = -np.log(right).reshape(depths, -1).mean(1)
    np.testing.assert_allclose(found.perplexity, np.exp(nats), rtol=1e-4)


def shares_of(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize("name", tiny_models.DECODERS)
def test_the_last_depth_is_the_model_itself(name):
    model, _ = tiny_models.build(name)
    words = text()
    found = Lens.of(Stack(model), words, tokenizer())
    with torch.no_grad():
        logits = model(input_ids=ids_of(words)[None]).logits[0].double()
    assert found.top_id[-1].tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(found.probability[-1], logits.softmax(1).amax(1), atol=1e-5)
    assert found.next_token
    assert found.depth == tiny_models.BLOCKS


def test_settling_is_for_good():
    top = np.array([[1, 1, 3], [1, 2, 3], [2, 1, 3], [1, 1, 3]])  # K = 4 depths, three positions
    found = small(
        top_id=top,
        top=(("x",) * 3,) * 4,
        probability=np.ones((4, 3)),
        entropy=np.zeros((4, 3)),
        target_probability=np.ones((4, 3)),
        target_rank=np.ones((4, 3), np.int64),
    )
    naively = [next(k for k in range(1, 4) if len({*top[k:, t].tolist()}) == 1) for t in range(3)]
    assert found.saturation.tolist() == naively == [3, 2, 1]


def test_a_raw_readout_leaves_the_norm_out_below_the_last_depth():
    model, _ = tiny_models.build("gpt2")
    words = text()
    tail, raw = (Lens.of(Stack(model), words, tokenizer(), final_norm=norm) for norm in (True, False))
    _, logits = naive.alone(model, ids_of(words), naive.GPT2_RAW)
    assert raw.top_id[:-1].tolist() == logits[:-1].argmax(-1).tolist() != tail.top_id[:-1].tolist()
    assert raw.top_id[-1].tolist() == tail.top_id[-1].tolist()
    assert raw.provenance["readout"] == "raw"


def test_a_model_that_fills_gaps_is_held_against_the_tokens_themselves():
    model, words = masked(), text()
    found = Lens.of(Stack(model), words, tokenizer(framed=True))
    assert not found.next_token
    assert found.tokens[0] == found.targets[0] == "[CLS]"
    ids = [3, *ids_of(words).tolist(), 4]
    assert found.target_id.tolist() == ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    expected = logits.softmax(1)[torch.arange(len(ids)), ids]
    np.testing.assert_allclose(found.target_probability[-1], expected, atol=1e-6)


class OwnModel(nn.Module):
    """A causal language model as people write it: bare ids in, bare logits out."""

    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.embed = nn.Embedding(tiny_models.VOCABULARY, tiny_models.WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(tiny_models.WIDTH, 4, 48, batch_first=True, dropout=0.0) for _ in range(3)
        )
        self.head = nn.Linear(tiny_models.WIDTH, tiny_models.VOCABULARY)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.embed(idx)
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1]) if self.causal else None
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return self.head(x)


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_of_ones_own_is_seen_to_be_causal_or_not(causal):
    torch.manual_seed(0)
    model, words = OwnModel(causal=causal).eval(), text()
    found = Lens.of(Stack(model), words, tokenizer())
    assert found.next_token is causal
    with torch.no_grad():
        logits = model(ids_of(words)[None])[0]
    assert found.top_id[-1].tolist() == logits.argmax(1).tolist()
    assert found.targets[-1] is None if causal else found.targets == found.tokens


def test_each_depth_is_read_by_its_own_head():
    model, _ = tiny_models.build("gpt2")
    words = text()
    batch = {"input_ids": ids_of(words)[None]}
    heads = separate_heads(Stack(model).classifier(batch), tiny_models.BLOCKS)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    stack = Stack(model, heads=heads)
    found = Lens.of(stack, words, tokenizer())
    with torch.no_grad():
        states = stack.states(batch)
        for depth in range(1, tiny_models.BLOCKS + 1):
            expected = stack.readout(states[depth], batch, depth=depth)[0].argmax(1)
            assert found.top_id[depth].tolist() == expected.tolist()
    assert found.top_id[1].tolist() != Lens.of(Stack(model), words, tokenizer()).top_id[1].tolist()


def test_logits_of_one_depth_are_let_go_before_the_next(monkeypatch):
    model, _ = tiny_models.build("gpt2")
    stack = Stack(model)
    Lens.of(stack, text(), tokenizer())  # the law has been checked
    seen, plain = [], Stack.readout

    def watched(*args, **kwargs):
        assert all(one() is None for one in seen), "logits of another depth are still there"
        found = plain(*args, **kwargs)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Stack, "readout", watched)
    Lens.of(stack, text(), tokenizer())
    assert len(seen) == tiny_models.BLOCKS + 1


def test_pieces_of_rows_change_nothing(monkeypatch):
    model, _ = tiny_models.build("gemma2")
    whole = Lens.of(Stack(model), text(), tokenizer())
    monkeypatch.setattr(lens, "PIECE", 2 * tiny_models.VOCABULARY)
    same(Lens.of(Stack(model), text(), tokenizer()), whole, slice(None))


def same(one, other, columns):
    for name in ("top_id", "probability", "entropy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name)[:, columns], atol=1e-6, rtol=0)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_and_says_so_and_what_is_left_stays_the_same():
    model, _ = tiny_models.build("llama")
    words = text(20)
    whole = Lens.of(Stack(model), words, tokenizer())
    cut = Lens.of(Stack(model), words, tokenizer(), longest=7)
    assert whole.notes == ()
    assert cut.notes == ("the text is cut to 7 of its 20 tokens",)
    assert cut.tokens == whole.tokens[:7]
    same(cut, whole, slice(7))  # a causal model does not look ahead


def test_a_text_beyond_what_the_model_takes_is_cut_to_that():
    model, _ = tiny_models.build("gpt2")  # 64 positions
    assert Lens.of(Stack(model), text(80), tokenizer()).notes == ("the text is cut to 64 of its 80 tokens",)
    loaded = LoadedModel(
        model=model,
        processor=tokenizer(),
        kind="text",
        task="causal-lm",
        name="small",
        max_length=10,
        notes=("a note",),
    )
    found = Lens.of(loaded, text(80))
    assert found.notes == ("a note", "the text is cut to 10 of its 80 tokens")
    assert found.provenance["model"]["name"] == "small"


def test_a_single_token_has_nothing_after_it():
    model, _ = tiny_models.build("gpt2")
    found = Lens.of(Stack(model), "w07", tokenizer())
    assert (found.targets, found.top_id.shape) == ((None,), (5, 1))
    assert np.isnan(found.perplexity).all()
    assert len(shown.findings(found)) == 1


def test_the_model_is_left_as_it_was():
    model, _ = tiny_models.build("gpt2")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (Lens.of(Stack(model), text(), tokenizer()) for _ in range(2))
    same(first, second, slice(None))  # no dropout
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frame_has_one_row_for_each_position_and_depth():
    model, _ = tiny_models.build("gpt2")
    found = Lens.of(Stack(model), text(4), tokenizer())
    frame = found.to_frame()
    assert len(frame) == 4 * 5
    for row in frame.itertuples():
        k, t = row.depth, row.position
        assert (row.token, row.top) == (found.tokens[t], found.top[k][t])
        assert row.target == found.targets[t] or t == 3
        assert (row.top_id, row.target_id) == (found.top_id[k, t], found.target_id[t])
        assert (row.probability, row.entropy) == (found.probability[k, t], found.entropy[k, t])
        assert row.target_rank == found.target_rank[k, t]
        assert row.settled == (k >= found.saturation[t])
    assert frame["target"].isna().sum() == 5


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert", "'BertForSequenceClassification' answers once for a text, with 5 numbers; a lens needs"),
        ("gpt2 classifier", "'GPT2ForSequenceClassification' answers once for a text, with 5 numbers"),
        ("bert tagger", "'BertForTokenClassification' chooses among 5 classes and reads 99 tokens; a lens needs"),
        ("bert without a head", "'BertModel' answers once for a text, with 32 numbers; a lens needs"),
    ],
)
def test_what_does_not_answer_over_a_vocabulary_is_refused(name, says):
    model, _ = tiny_models.build(name)
    with pytest.raises(UnsupportedHead, match=re.escape(says)) as raised:
        Lens.of(Stack(model), text(), tokenizer(framed=True))
    assert "\n" not in str(raised.value)


def test_states_without_a_head_are_refused():
    model = transformers.GPT2Model(tiny_models._text_config("gpt2", tiny_models.DECODERS["gpt2"]))
    with pytest.raises(UnsupportedHead, match="'GPT2Model' has no head and answers with 32 features; a lens needs"):
        Lens.of(Stack(model.eval()), text(), tokenizer())


def test_an_image_model_is_refused():
    model, _ = tiny_models.build("vit")
    with pytest.raises(UnsupportedHead, match=r"'eye' takes no text \(image-classification\); a lens needs"):
        Lens.of(LoadedModel(model=model, processor=None, kind="image", task="image-classification", name="eye"), text())
    with pytest.raises(UnsupportedHead, match="came with function, which is no tokenizer; a lens needs a language"):
        Lens.of(Stack(model), text(), naive.padded)


@pytest.mark.parametrize("nothing", ["", "   ", "\n"])
def test_a_text_of_no_tokens_is_refused(nothing):
    model, _ = tiny_models.build("gpt2")
    says = f"the text {nothing!r} becomes no tokens, expected at least one: give a longer text"
    for one in (tokenizer(), tokenizer(framed=True)):  # special tokens alone are no text
        with pytest.raises(DataError, match=re.escape(says)):
            Lens.of(Stack(model), nothing, one)


def test_a_stack_without_a_tokenizer_is_refused():
    model, _ = tiny_models.build("gpt2")
    with pytest.raises(ModelError, match=r"a Stack of GPT2LMHeadModel came without a tokenizer: expected Lens.of\(st"):
        Lens.of(Stack(model), text())


def test_a_tokenizer_of_another_model_is_refused():
    model, _ = tiny_models.build("gpt2")
    other = tokenizer()
    other.add_tokens(["w200"])
    with pytest.raises(ModelError, match="the tokenizer gives token 99 and the model knows 99"):
        Lens.of(Stack(model), "w07 w200", other)


def test_a_lens_of_nothing_is_refused():
    model, _ = tiny_models.build("gpt2")
    with pytest.raises(DataError, match="a lens of 0 tokens was asked for, expected at least 1"):
        Lens.of(Stack(model), text(), tokenizer(), longest=0)


def test_nan_names_its_depth():
    model, _ = tiny_models.build("gpt2")
    stack = Stack(model)
    Lens.of(stack, text(), tokenizer())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteStates, match="the readout at depth 2 gives NaN, expected finite numbers"):
        Lens.of(stack, text(), tokenizer())


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag with its attributes, the words outside of styles, and the tables cell by cell."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.words, self.rows, self._quiet = [], [], [], False
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._quiet = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if not self._quiet:
            self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def saved(found, tmp_path):
    return found.save(tmp_path / "lens.html").read_text("utf-8")


def hostile():
    tokens = HOSTILE + UNSEEN
    count = len(tokens)
    return small(
        tokens=tokens,
        targets=(*tokens[1:], None),
        top=(tokens,) * 3,
        top_id=np.tile(np.arange(count), (3, 1)),
        probability=np.tile(np.linspace(1, 0, count), (3, 1)),
        entropy=np.zeros((3, count)),
        target_id=np.array([*range(1, count), NOTHING]),
        target_probability=np.full((3, count), 0.5),
        target_rank=np.ones((3, count), np.int64),
        notes=(HOSTILE[0],),
        provenance={"model": {"name": HOSTILE[1]}},
    )


def test_what_tokens_say_is_text_and_nothing_else(tmp_path):
    content = saved(hostile(), tmp_path)
    page = Page(content)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "b", "iframe", "link", "object"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not [
        value for _, attributes in page.tags for value in (attributes.get("href"), attributes.get("src")) if value
    ]
    said = "".join(page.words)
    for token in HOSTILE:
        assert token.replace(" ", "␣") in said
    for mark in ("␣", "↵", "⇥", "U+0000", "U+007F", "U+202E", "U+200B", "U+00A0", "U+D800", "∅"):
        assert mark in said
    assert not [c for c in content if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c != "\n"]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy


@given(st.text())
def test_all_of_a_token_is_seen(token):
    parts = shown.visible(token)
    assert all(text and not any(unicodedata.category(c) in shown._INVISIBLE for c in text) for text, _ in parts)
    plain = "".join(text for text, mark in parts if not mark)
    assert plain == "".join(c for c in token if unicodedata.category(c) not in shown._INVISIBLE)
    assert all(one[1] != other[1] for one, other in pairwise(parts))


def test_the_table_is_the_lens(tmp_path):
    model, _ = tiny_models.build("gpt2")
    found = Lens.of(Stack(model), text(17), tokenizer())
    rows = Page(saved(found, tmp_path)).rows
    assert [row[0] for row in rows] == ["text", "next", "4", "3", "2", "1", "0"] * 2  # strips of 12 and 5
    for start, strip in ((0, rows[:7]), (12, rows[7:])):
        here = range(start, min(start + 12, 17))
        assert strip[0][1:] == [found.tokens[t].replace(" ", "␣") for t in here]
        assert strip[1][1:] == [(found.targets[t] or "–").replace(" ", "␣") for t in here]
        for row in strip[2:]:
            k = int(row[0])
            for t, cell in zip(here, row[1:], strict=True):
                assert cell.startswith(found.top[k][t].replace(" ", "␣"))
                assert cell.endswith(" saturated") == (found.saturation[t] == k)
    body = shown.section(found).body
    assert body.count('saturates" title') == 17
    first = found.top[2][0].replace(" ", "␣")
    told = f"Depth 2, position 0: {first} with {found.probability[2, 0]:.1%}, entropy {found.entropy[2, 0]:.2f} nats."
    assert told in body


def test_levels_of_colour_are_the_nearest_stops():
    (strip,) = shown.strips(small())
    for depth, cells in strip.rows:
        for t, cell in enumerate(cells):
            share = small().probability[depth, t]
            assert abs(theme.HEAT_STOPS[cell.level] - share) == pytest.approx(
                min(abs(stop - share) for stop in theme.HEAT_STOPS)
            )
    assert [[cell.right for cell in cells] for _, cells in strip.rows] == [
        [True, True, False], [True, False, False], [False, False, False],
    ]  # fmt: skip
    assert [[cell.saturates for cell in cells] for _, cells in strip.rows] == [
        [False, True, False], [True, False, True], [False, False, False],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("top", "claim", "detail"),
    [
        (
            [[9, 9, 9], [1, 9, 9], [1, 2, 9]],
            "Half of the 3 positions have saturated by depth 1 of 2.",
            "Saturated: 66.7% by depth 1, 66.7% before the last block.",
        ),
        (
            [[1, 2, 9], [9, 9, 9], [1, 2, 9]],
            "Most of the 3 positions saturate only at the last depth.",
            "Saturated: 33.3% before the last block.",
        ),
    ],
)
def test_saturation_in_words(top, claim, detail):
    finding = shown.findings(small(top_id=np.array(top)))[0]
    assert (finding.claim, finding.detail) == (claim, detail)


def test_targets_in_words():
    found = shown.findings(small())[1]
    assert found.claim == "At the last depth, the token that follows is the most probable one at 2 of 2 positions."
    assert found.detail == (
        "Perplexity of these 2 tokens: 2.0 at depth 2, where 2 are on top; 4.0 at depth 1, where 1 are on top; "
        "2.0 at depth 0, where 0 are on top."
    )
    assert "that stands there" in shown.findings(replace(small(), next_token=False))[1].claim


def test_a_target_of_no_probability_is_said_to_be_one():
    shares = np.where(np.isnan(small().target_probability), np.nan, 0.0)
    found = small(target_probability=shares)
    assert np.isinf(found.perplexity).all()
    assert "∞ at depth 2" in shown.findings(found)[1].detail


def test_a_page_replaces_another_at_once_or_not_at_all(tmp_path):
    target = tmp_path / "lens.html"
    target.write_text("old")
    assert small().save(target) == target
    assert "old" not in target.read_text("utf-8").split("<body>")[0][:40]
    assert [path.name for path in tmp_path.iterdir()] == ["lens.html"]
    with pytest.raises(TraceFileError, match="cannot write"):
        small().save(target / "inside.html")


def css() -> str:
    from importlib.resources import files

    return files("anydepth.report").joinpath("page.css").read_text("utf-8")


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_the_theme_s_and_can_be_written_on(dark):
    light_part, dark_part = css().partition("/* lens:")[2].partition("@media screen")[::2]
    part = dark_part.partition("}\n}")[0] if dark else light_part
    variables = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
    heat = [variables[f"heat-{level}"] for level in range(len(theme.HEAT_STOPS))]
    config = theme.config(dark=dark)
    assert heat == config["range"]["heatmap"]
    low, high = variables["on-low"], variables["on-high"]
    assert {low, high} == {config["title"]["color"], config["background"]}
    assert variables["ring"] == config["range"]["diverging"][0]
    for level, colour in enumerate(heat):
        (ink,) = re.findall(rf"^[^{{]*\.heat-{level}\b[^{{]* {{ color: var\(--(on-\w+)\); }}", css(), re.MULTILINE)
        assert contrast(variables[ink], colour) >= 4.5, (level, colour)
        # the ring is a line of two colours: one of them stands out against any cell
        assert max(contrast(variables["ring"], colour), contrast(config["background"], colour)) >= 3


def contrast(one, other):
    """WCAG 2.2's ratio."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_in_a_browser(chromium, tmp_path):
    path = hostile().save(tmp_path / "lens.html")
    with Browser(chromium) as browser:
        browser.open(path)
        assert browser.complaints() == []  # a dialog would be one
        assert browser.requests() == [path.as_uri()]
        table = "document.querySelector('table.lens')"
        assert browser.evaluate(f"{table}.querySelectorAll('tbody tr').length") == 3
        select = f"getSelection().selectAllChildren({table}.querySelector('tbody td')); getSelection().toString()"
        assert browser.evaluate(select).startswith(HOSTILE[0])
        colour = f"getComputedStyle({table}.querySelector('.heat-8')).backgroundColor"
        assert browser.evaluate(colour) == "rgb(34, 40, 88)"
        browser.scheme("dark")
        assert browser.evaluate(colour) == "rgb(179, 249, 229)"
        browser.call(
            "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        assert browser.evaluate(colour) == "rgb(34, 40, 88)"
        browser.open(path, width=390, height=844)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.evaluate("document.querySelector('.scroll').scrollWidth") > 390
        assert browser.evaluate("document.querySelector('.scroll').tabIndex") == 0


def test_provenance_can_be_kept_as_json():
    model, _ = tiny_models.build("gpt2")
    found = Lens.of(Stack(model), text(), tokenizer())
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    assert found.provenance["model"]["depth"] == tiny_models.BLOCKS
