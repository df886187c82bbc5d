"""Importers: results of lm-eval, Inspect, BenchLocal, EvalPlus and tables, as evidence.

The files in tests/data/importers are what the tools wrote; its README says how. What is wrong with a file is made by
changing one of them.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gates import canonical, evidence
from gates.errors import InvalidEvidence, SluiceError, UsageError
from gates.importers import TOOLS, read
from gates.importers.source import Choice, Imported, Source
from gates.records import Evidence

DATA = Path(__file__).parents[1] / "data" / "importers"
BOTH = (InvalidEvidence, UsageError)


def files(folder: str, pattern: str = "*") -> list[Source]:
    return [Source(path.name, path.read_bytes()) for path in sorted((DATA / folder).glob(pattern))]


def one(sources: list[Source], **choice: str) -> Imported:
    [found] = read(sources, choice=Choice(**choice))
    return found


def complaints(found: Imported) -> tuple[str, ...]:
    """What the gates' own check says of the evidence that this becomes."""
    rows = found.written()
    header = Evidence(
        format=1,
        candidate="c" * 64,
        pack=found.pack,
        repeats=found.repeats,
        conditions=found.conditions,
        totals=found.totals,
        rows=canonical.digest(rows) if rows else None,
    )
    return evidence.check(header, rows or None).complaints


def points(found: Imported) -> dict[tuple[str, int], tuple[float | None, str]]:
    return {(row.item, row.repeat): (row.points, row.outcome) for row in found.rows or ()}


def changed(source: Source, change: Callable[[Any], None]) -> Source:
    """A JSON file with one thing changed in it."""
    value = json.loads(source.data)
    change(value)
    return Source(source.name, json.dumps(value).encode())


EVERY = ["lm-eval-0.4.5", "lm-eval-0.4.13", "lm-eval-0.4.13-group", "lm-eval-0.4.13-hf", "inspect", "evalplus"]


@pytest.mark.parametrize("folder", EVERY)
def test_what_a_tool_wrote_becomes_evidence_that_the_gates_take(folder: str):
    found = read(files(folder))
    assert found
    for each in found:
        assert complaints(each) == ()
        assert each.rows


@pytest.mark.parametrize("folder", EVERY)
def test_a_file_is_known_by_what_is_in_it_and_read_the_same_twice(folder: str):
    sources = files(folder)
    [tool] = [name for name, importer in TOOLS.items() if importer.recognises(sources)]
    assert read(sources, tool=tool) == read(sources)


@pytest.mark.parametrize("tool", sorted(TOOLS))
@pytest.mark.parametrize("folder", EVERY)
def test_another_tools_file_is_refused(folder: str, tool: str):
    sources = files(folder)
    if not TOOLS[tool].recognises(sources):
        with pytest.raises(BOTH):
            read(sources, tool=tool)


# lm-eval


@pytest.mark.parametrize("folder", ["lm-eval-0.4.5", "lm-eval-0.4.13"])
def test_lm_evals_samples_are_rows_under_the_conditions_it_states(folder: str):
    spoken, chosen = read(files(folder))
    assert (spoken.pack, spoken.totals.overall.points, spoken.totals.overall.items) == ("tiny_gen", 1, 4)
    assert points(spoken)["3", 0] == (1, "scored")
    assert spoken.conditions.max_tokens == 16
    assert spoken.conditions.sampling is not None
    assert spoken.conditions.sampling["drawn"]["temperature"] == 0
    assert chosen.conditions.sampling is not None
    assert chosen.conditions.sampling["drawn"] == "nothing"
    unknown = {"engine", "server_flags", "reasoning_parser", "tool_parser", "tokenizer", "thinking"}
    assert unknown <= set(evidence.unknown(spoken.conditions))


def test_lm_eval_states_the_engine_the_template_and_the_length_of_a_model_it_runs_itself():
    conditions = read(files("lm-eval-0.4.13-hf"))[0].conditions
    template = (Path(__file__).parents[2] / "stages" / "toy" / "checkpoint" / "chat_template.jinja").read_text()
    assert conditions.engine == "transformers"
    assert conditions.engine_version
    assert conditions.chat_template in {
        canonical.digest(template.encode()),
        canonical.digest(template.rstrip("\n").encode()),
    }
    assert conditions.server_flags is not None
    assert conditions.server_flags["dtype"] == "float32"
    assert "pretrained" not in conditions.server_flags
    assert conditions.max_tokens == 8  # what the command line asked for, over what the task asks for


def test_each_metric_and_filter_of_a_task_is_a_grader_of_its_own():
    names = ["exact_match,strict-match", "exact_match,flexible-extract"]
    found = [one(files("lm-eval-0.4.13"), task="tiny_gen", metric=name) for name in names]
    assert len({each.conditions.grader for each in found}) == 2
    assert len({each.conditions.pack for each in found}) == 1
    assert (
        one(files("lm-eval-0.4.13"), task="tiny_gen", metric="exact_match")
        == found[0]
        == read(files("lm-eval-0.4.13"))[0]
    )


def test_a_group_is_a_pack_and_its_tasks_are_categories():
    found = one(files("lm-eval-0.4.13-group"))
    assert found.pack == "tiny_group"
    assert set(found.totals.categories) == {"tiny_north", "tiny_south"}
    assert {row.item.split("/")[0] for row in found.rows or ()} == {"tiny_north", "tiny_south"}
    assert one(files("lm-eval-0.4.13-group"), task="tiny_south").totals.overall == found.totals.categories["tiny_south"]


def test_a_group_that_states_another_mean_is_kept_item_by_item_and_that_is_said():
    results, *samples = files("lm-eval-0.4.13-group")
    other = changed(results, lambda run: run["results"]["tiny_group"].update({"acc,none": 0.9}))
    found = one([other, *samples])
    assert found.totals == one([results, *samples]).totals
    assert any("0.9" in note for note in found.notes)


def test_groups_that_hold_each_other_in_any_number_end():
    def tangled(run: Any) -> None:
        layers = [[f"g{depth}_{each}" for each in range(12)] for depth in range(24)]
        held = [*layers[1:], ["tiny_north", "tiny_south", "g0_0"]]
        run["group_subtasks"] = {"tiny_group": layers[0]} | {
            name: below for layer, below in zip(layers, held, strict=True) for name in layer
        }

    results, *samples = files("lm-eval-0.4.13-group")
    assert one([changed(results, tangled), *samples]).totals == one([results, *samples]).totals
    with pytest.raises(InvalidEvidence, match="hold each other"):
        one([changed(results, lambda run: run.update(group_subtasks={"a": ["b"], "b": ["a"]}))], task="a")


@pytest.mark.parametrize("folder", ["lm-eval-0.4.5", "lm-eval-0.4.13", "lm-eval-0.4.13-group"])
def test_without_samples_the_totals_stand_alone(folder: str):
    with_rows, alone = read(files(folder)), read(files(folder, "results*"))
    for rows, total in zip(with_rows, alone, strict=True):
        assert (total.rows, total.totals) == (None, rows.totals)
        assert total.notes
        assert complaints(total) == ()


def test_samples_need_their_results():
    with pytest.raises(UsageError, match=r"results_\*\.json"):
        read(files("lm-eval-0.4.13", "samples*"), tool="lm-eval")
    results = files("lm-eval-0.4.13", "results*")
    with pytest.raises(UsageError, match="no task here has the samples"):
        read([*results, *files("lm-eval-0.4.13-group", "samples*")])


def _lm_results(value: Any, **changes: Any) -> Any:
    return changed(value, lambda run: run["results"]["tiny_mc"].update(changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1, "0.25", None, [0.25], 0.5])
def test_a_total_that_cannot_be_or_is_not_that_of_the_samples_is_refused(value: Any):
    results, *samples = files("lm-eval-0.4.13")
    with pytest.raises(InvalidEvidence) as error:
        read([_lm_results(results, **{"acc,none": value}), *samples])
    assert "tiny_mc" in (error.value.where or "")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[0]],
        lambda lines: [line.replace('"acc": ', '"accuracy": ') for line in lines],
        lambda lines: [line.replace('"acc": 0.0', '"acc": NaN') for line in lines],
        lambda lines: [line.replace('"acc": 0.0', '"acc": 7') for line in lines],
        lambda lines: [line.replace('"acc": 0.0', '"acc": 1.0') for line in lines],
        lambda lines: [*lines[:-1], lines[-1][:40]],
        lambda lines: [line.replace('"doc_id": 0', '"doc_id": "x"') for line in lines],
        lambda _: [],
    ],
)
def test_samples_that_are_cut_doubled_or_changed_are_refused_with_their_place(change: Callable[[list[str]], list[str]]):
    results, spoken, chosen = files("lm-eval-0.4.13")
    broken = Source(chosen.name, "\n".join(change(chosen.data.decode().splitlines())).encode())
    with pytest.raises(BOTH) as error:
        read([results, spoken, broken])
    assert chosen.name in (error.value.where or "")


def test_samples_of_before_filters_were_named_go_to_the_filters_in_their_order():
    found = one(files("lm-eval-0.4.5"), task="tiny_gen", metric="exact_match,flexible-extract")
    assert found.totals == one(files("lm-eval-0.4.13"), task="tiny_gen", metric="exact_match,flexible-extract").totals


def test_no_secret_and_no_address_becomes_a_condition_or_is_recorded():
    def with_secrets(run: Any) -> None:
        run["config"]["model"] = "vllm"
        run["config"]["model_args"] = {
            "pretrained": "/home/me/v7b",
            "api_key": "hf_SECRET",
            "base_url": "http://me:SECRET@host",
            "header": {"Authorization": "Bearer SECRET"},
            "max_model_len": 2048,
        }
        run["config"]["gen_kwargs"] = {"extra_body": {"api_key": "SECRET", "top_k": 1}}

    results, *samples = files("lm-eval-0.4.13")
    found = read([changed(results, with_secrets), *samples])
    assert found[0].conditions.server_flags == {"max_model_len": 2048}
    for each in found:
        assert "SECRET" not in each.conditions.model_dump_json() + json.dumps(each.recorded)
    as_text = changed(
        results, lambda run: run["config"].update(model="vllm", model_args="pretrained=x,api_key=S,dtype=auto")
    )
    assert read([as_text, *samples])[0].conditions.server_flags == {"dtype": "auto"}


def test_the_command_lines_sampling_is_the_same_however_it_is_written():
    results, *samples = files("lm-eval-0.4.5")
    ways: list[Any] = ["temperature=0.6,top_k=20,do_sample=True", {"temperature": 0.6, "top_k": 20, "do_sample": True}]
    runs = [changed(results, lambda run, way=way: run["config"].update(gen_kwargs=way)) for way in ways]
    first, second = (read([run, *samples])[0].conditions for run in runs)
    assert first == second
    assert first.sampling is not None
    assert first.sampling["drawn"]["temperature"] == 0.6


def test_without_a_temperature_the_sampling_is_the_servers_own_and_unknown():
    results, *samples = files("lm-eval-0.4.5")

    def bare(run: Any) -> None:
        run["configs"]["tiny_gen"]["generation_kwargs"] = {"until": ["x"], "max_gen_toks": 16}

    conditions = read([changed(results, bare), *samples])[0].conditions
    assert (conditions.sampling, conditions.max_tokens) == (None, 16)


def test_parsers_and_the_length_that_a_server_was_given_are_conditions():
    results, *samples = files("lm-eval-0.4.13")
    given = "pretrained=x,reasoning_parser=qwen3,tool_call_parser=hermes,max_model_len=4096,batch_size=7,dtype=auto"
    served = changed(results, lambda run: run["config"].update(model="vllm", model_args=given))
    conditions = read([served, *samples])[0].conditions
    assert (conditions.reasoning_parser, conditions.tool_parser, conditions.max_length) == ("qwen3", "hermes", 4096)
    assert conditions.server_flags == {"max_model_len": 4096, "dtype": "auto"}
    given = {"reasoning_parser": "qwen3", "max_model_len": 4096}
    [log] = files("inspect", "whole.json")
    logged = one([changed(log, lambda run: run["eval"].update(model="vllm/x", model_args=given))]).conditions
    assert (logged.engine, logged.reasoning_parser, logged.max_length) == ("vllm", "qwen3", 4096)


def test_samples_of_before_0_4_3_are_one_list_named_after_model_and_task():
    """Not written by that version: 0.4.5's, in the form that its source gives them."""
    results, *samples = files("lm-eval-0.4.5")

    def older(run: Any) -> None:
        for field in ("n-samples", "higher_is_better", "chat_template", "chat_template_sha", "task_hashes"):
            run.pop(field, None)

    def as_list(sample: Source, name: str) -> Source:
        return Source(name, json.dumps([json.loads(line) for line in sample.data.splitlines()], indent=2).encode())

    files_ = [
        as_list(each, f"pretrained__x_{task}.jsonl")
        for each, task in zip(samples, ("tiny_gen", "tiny_mc"), strict=True)
    ]
    found = read([changed(results, older), *files_])
    assert [each.totals for each in found] == [each.totals for each in read([results, *samples])]
    assert all(each.conditions.dataset for each in found)
    with pytest.raises(UsageError, match="how many items") as error:
        read([changed(results, older)])
    assert "--log_samples" in (error.value.remedy or "")


@pytest.mark.parametrize(
    ("metric", "aggregation"), [("bleu", "bleu"), ("chrf", "chrf"), ("bleu_max", "mean"), ("exact", None)]
)
def test_what_lm_eval_states_of_a_hundred_is_read_so_however_small_it_is(metric: str, aggregation: str | None):
    """A BLEU of 0.34 is a third of a point in a hundred, and no third of all."""

    def other(run: Any) -> None:
        run["results"] = {"tiny_mc": {f"{metric},none": 0.34, "best_exact,none": 50.1}}
        run["configs"] = {"tiny_mc": {"metric_list": [{"metric": metric, "aggregation": aggregation}]}}
        if aggregation is None:
            del run["configs"]["tiny_mc"]["metric_list"]
        else:
            del run["results"]["tiny_mc"]["best_exact,none"]
        run["group_subtasks"] = {"tiny_mc": []}

    found = one([changed(files("lm-eval-0.4.13", "results*")[0], other)])
    assert found.totals.overall.points / found.totals.overall.of == pytest.approx(0.0034)


def _perplexity_beside(more: dict[str, float]) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        run["results"]["tiny_mc"] = {"word_perplexity,none": 5.7, **more}
        run["higher_is_better"]["tiny_mc"] = {"word_perplexity": False, "acc": True}

    return change


def test_without_a_choice_a_task_is_judged_by_the_first_metric_of_which_more_is_better():
    results, *_ = files("lm-eval-0.4.13", "results*")
    _, found = read([changed(results, _perplexity_beside({"acc,none": 0.25}))])
    assert found.recorded["metric"] == ["acc,none"]
    with pytest.raises(UsageError, match="less is better") as error:
        one([changed(results, _perplexity_beside({"acc,none": 0.25}))], task="tiny_mc", metric="word_perplexity")
    assert "acc,none" in (error.value.remedy or "")


@pytest.mark.parametrize("metric", ["bits_per_byte", "word_perplexity", "brier_score", "ter"])
def test_less_that_is_better_is_never_a_score_whatever_the_results_say(metric: str):
    """Before 0.4.3 they say nothing, and of ter they say that more is."""

    def other(run: Any) -> None:
        run["results"]["tiny_mc"] = {f"{metric},none": 0.14, "acc,none": 0.25}
        run["higher_is_better"] = {"tiny_mc": {"ter": True}}

    changed_ = changed(files("lm-eval-0.4.13", "results*")[0], other)
    assert one([changed_], task="tiny_mc").recorded["metric"] == ["acc,none"]
    with pytest.raises(UsageError, match="less is better"):
        one([changed_], task="tiny_mc", metric=metric)


def test_items_that_only_the_samples_count_are_counted_there():
    """Before 0.4.3 nothing else does; a metric that is no mean of them still has that many."""

    def older(run: Any) -> None:
        del run["n-samples"]
        run["configs"]["tiny_mc"]["metric_list"][0]["aggregation"] = "f1"

    results, *samples = files("lm-eval-0.4.5")
    found = one([changed(results, older), *samples], task="tiny_mc")
    assert (found.rows, found.totals.overall.items) == (None, 4)


def test_a_task_that_has_no_score_keeps_no_other_from_being_read_and_that_is_said():
    results, *samples = files("lm-eval-0.4.13")
    bare = changed(results, _perplexity_beside({}))
    found = one([bare, *samples])
    assert (found.pack, found.rows is not None) == ("tiny_gen", True)
    assert any("tiny_mc is left out" in note for note in found.notes)
    with pytest.raises(UsageError, match="less is better"):
        read([bare], choice=Choice(task="tiny_mc"))


def test_results_of_lm_eval_before_0_4_are_known_and_refused_with_what_to_do():
    """Their form as 0.3 gives it; nothing in it says of how many items a score is."""
    older = {
        "results": {"arc_easy": {"acc": 0.5, "acc_stderr": 0.01}},
        "versions": {"arc_easy": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=x", "num_fewshot": 0, "limit": None},
    }
    with pytest.raises(UsageError, match=r"before 0\.4") as error:
        read([Source("1b_step143000.json", json.dumps(older).encode())])
    assert "--from totals" in (error.value.remedy or "")


# Inspect


def test_a_log_is_the_same_in_both_formats():
    zipped, written = one(files("inspect", "whole.eval")), one(files("inspect", "whole.json"))
    assert (zipped.rows, zipped.conditions) == (written.rows, written.conditions)
    assert zipped.pack == "tiny"
    assert zipped.conditions.max_tokens == 64
    assert zipped.conditions.sampling == {"temperature": 0.7, "seed": 3}


def test_errors_are_missing_limits_score_nothing_and_epochs_are_repeats():
    found = one(files("inspect", "broken.eval"))
    assert found.repeats == 2
    assert points(found) == {
        ("s1", 0): (1, "scored"),
        ("s1", 1): (1, "scored"),
        ("s2", 0): (1, "scored"),
        ("s2", 1): (1, "scored"),
        ("s3", 0): (None, "infra"),
        ("s3", 1): (None, "infra"),
        ("s4", 0): (0, "truncated"),
        ("s4", 1): (0, "truncated"),
    }
    assert found.totals.missing == 2
    assert {row.category for row in found.rows or () if row.item == "s1"} == {"sums"}


def test_a_log_is_judged_by_its_first_score_or_the_one_that_is_chosen():
    first, second = (one(files("inspect", "broken.eval"), metric=each) for each in ("match", "half"))
    assert one(files("inspect", "broken.eval")) == first
    assert first.conditions.grader != second.conditions.grader
    assert second.totals.overall.points == 2  # of two items asked twice, half each; the limits' halves do not count
    assert any("limit" in note for note in second.notes)
    with pytest.raises(UsageError, match="none") as error:
        one(files("inspect", "broken.eval"), metric="none")
    assert "match, half" in (error.value.remedy or "")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda log: log["samples"].append(log["samples"][0]), "samples[2], id"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value=float("nan")), "scores.match.value"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value=3), "scores.match.value"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value="maybe"), "scores.match.value"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value={"a": 1}), "scores.match.value"),
        (lambda log: log["samples"][0]["scores"]["match"].update(value="I"), "results.scores, match"),
        (lambda log: log["samples"][0]["scores"].clear(), "samples[0], scores"),
        (lambda log: log["samples"][0].update(id="s9"), "samples"),
        (lambda log: log["samples"][0].update(epoch=2), "epoch"),
        (lambda log: log["samples"][0].update(id=None), "id"),
        (lambda log: log.update(version=1), "version"),
        (lambda log: log.update(invalidated=True), "invalidated"),
        (lambda log: log.update(results=None), "results.scores"),
        (lambda log: log["results"]["scores"][0]["metrics"]["accuracy"].update(value=float("nan")), "results.scores"),
    ],
)
def test_a_log_that_says_what_cannot_be_is_refused_with_the_field(change: Callable[[Any], None], field: str):
    [log] = files("inspect", "whole.json")
    with pytest.raises(BOTH) as error:
        read([changed(log, change)])
    assert field in (error.value.where or "")


def test_samples_that_an_interrupted_log_lacks_are_missing():
    def cut(log: Any) -> None:
        log["status"] = "cancelled"
        del log["samples"][1]
        for score in log["results"]["scores"]:
            score["metrics"].clear()

    found = one([changed(files("inspect", "whole.json")[0], cut)])
    assert points(found)["s2", 0] == (None, "infra")
    assert found.totals.missing == 1


def test_a_log_without_samples_is_totals_alone():
    found = one([changed(files("inspect", "whole.json")[0], lambda log: log.pop("samples"))])
    assert found.rows is None
    assert (found.totals.overall.points, found.totals.overall.items) == (2, 2)


@pytest.mark.parametrize("value", [float("nan"), None, "absent"])
def test_what_a_scorer_left_unscored_is_missing_if_the_log_counts_it_so(value: Any):
    def unscored(log: Any) -> None:
        judged = log["samples"][0]["scores"]
        judged["match"].update(value=value)
        if value == "absent":
            del judged["match"]
        log["results"]["scores"][0].update(scored_samples=1, unscored_samples=1)

    [log] = files("inspect", "whole.json")
    found = one([changed(log, unscored)])
    assert sorted(row.outcome for row in found.rows or ()) == ["infra", "scored"]
    assert any("got no score" in note for note in found.notes)
    assert complaints(found) == ()
    with pytest.raises(InvalidEvidence, match="no score"):
        one([changed(changed(log, unscored), lambda log: log["results"]["scores"][0].update(scored_samples=2))])


def test_a_log_of_before_scored_samples_were_counted_has_the_answers_that_came():
    def older(log: Any) -> None:
        del log["samples"]
        for score in log["results"]["scores"]:
            del score["scored_samples"], score["unscored_samples"]
        log["results"].update(total_samples=4, completed_samples=2)

    found = one([changed(files("inspect", "whole.json")[0], older)])
    assert (found.totals.overall.items, found.totals.missing) == (2, 2)


def test_logs_of_other_samples_of_one_dataset_never_meet():
    [log] = files("inspect", "whole.json")
    bare = changed(log, lambda log: log.pop("samples"))
    part = changed(bare, lambda log: log["eval"]["dataset"].update(sample_ids=["s1"]))
    assert one([bare]).conditions.pack != one([part]).conditions.pack


def test_a_score_of_several_values_says_which_can_be_chosen():
    def several(log: Any) -> None:
        for sample in log["samples"]:
            sample["scores"]["match"]["value"] = {"steps": 3, "solved": 1}

    with pytest.raises(InvalidEvidence, match="steps, solved") as error:
        one([changed(files("inspect", "whole.json")[0], several)])
    assert "--metric" in (error.value.remedy or "")


def test_a_task_that_is_not_in_a_log_is_refused():
    with pytest.raises(UsageError, match="other"):
        one(files("inspect", "whole.eval"), task="other")
    assert one(files("inspect", "whole.eval"), task="tiny").pack == "tiny"


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return held.getvalue()


def _members() -> dict[str, bytes]:
    log = json.loads((DATA / "inspect" / "whole.json").read_bytes())
    samples = log.pop("samples")
    named = {f"samples/{each['id']}_epoch_{each['epoch']}.json": json.dumps(each).encode() for each in samples}
    return {"header.json": json.dumps(log).encode()} | named


def test_older_logs_are_compressed_as_any_zip():
    assert one([Source("old.eval", _archive(_members()))]) == one(files("inspect", "whole.json"))


def test_a_zip_that_would_unpack_to_gigabytes_is_refused_before_it_does():
    bomb = _archive(_members() | {"samples/s3_epoch_1.json": b"0" * (2**27 + 1)})
    assert len(bomb) < 2**20
    with pytest.raises(UsageError, match="would unpack to"):
        read([Source("bomb.eval", bomb)])
    # a size that is a lie is found as the member ends
    small = _archive({"header.json": b" " * 2**20})
    place = small.rindex(b"PK\x01\x02") + 24
    lying = small[:place] + struct.pack("<I", 10) + small[place + 4 :]
    with pytest.raises(BOTH):
        read([Source("lying.eval", lying)])


@pytest.mark.parametrize("cut", [10, 100, -10, -200])
def test_a_zip_that_is_not_whole_is_refused(cut: int):
    [log] = files("inspect", "whole.eval")
    with pytest.raises(UsageError, match="zip cannot be read"):
        read([Source(log.name, log.data[:cut])], tool="inspect")


@given(place=st.integers(0, 7000), letter=st.integers(0, 255))
@settings(max_examples=40)
def test_a_zip_with_any_byte_changed_is_read_as_before_or_refused(place: int, letter: int):
    [log] = files("inspect", "whole.eval")
    data = bytearray(log.data)
    data[place % len(data)] = letter
    try:
        found = read([Source(log.name, bytes(data))], tool="inspect")
    except SluiceError:
        return
    assert {row.item for row in found[0].rows or ()} <= {"s1", "s2"}


# EvalPlus


def test_solutions_are_repeats_and_the_extra_tests_decide():
    found = one(files("evalplus", "tiny_hf*"))
    assert (found.pack, found.repeats, found.totals.overall.points, found.totals.overall.of) == (
        "humaneval-plus",
        2,
        4,
        6,
    )
    base = one(files("evalplus", "tiny_hf*"), metric="base")
    assert (base.pack, base.totals.overall.points) == ("humaneval", 5)
    assert base.conditions.grader != found.conditions.grader
    assert found.conditions.dataset == base.conditions.dataset
    assert (found.conditions.engine, found.conditions.sampling) == ("transformers", {"temperature": 0.8})


def test_a_name_that_says_nothing_leaves_the_conditions_unknown():
    [source] = files("evalplus", "tiny_vllm*")
    assert one([source]).conditions.engine == "vllm"
    renamed = one([Source("mine_eval_results.json", source.data)]).conditions
    assert (renamed.engine, renamed.sampling) == (None, None)


def test_a_program_that_met_the_time_limit_scores_nothing():
    [source] = files("evalplus", "tiny_vllm*")
    slow = changed(source, lambda run: run["eval"]["HumanEval/1"][0].update(plus_status="timeout"))
    assert points(one([slow]))["HumanEval/1", 0] == (0, "verifier_timeout")


def test_results_of_evalplus_before_0_2_are_read():
    ends = {
        "HumanEval/0": ("success", "success"),
        "HumanEval/1": ("success", "failed"),
        "HumanEval/2": ("failed", "timed out"),
    }
    told = {task: {"nfiles": 1, "base": [[base, []]], "plus": [[plus, []]]} for task, (base, plus) in ends.items()}
    found = one([Source("eval_results.json", json.dumps({"date": "", "hash": "h", "eval": told}).encode())])
    assert [points(found)[task, 0] for task in ends] == [(1, "scored"), (0, "scored"), (0, "verifier_timeout")]


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run["eval"]["HumanEval/1"].pop(),
        lambda run: run["eval"]["HumanEval/1"][0].update(base_status="great"),
        lambda run: run["eval"]["HumanEval/1"][0].pop("base_status"),
        lambda run: run["eval"].update({"Mbpp/2": run["eval"]["HumanEval/1"]}),
        lambda run: run.update(eval={}),
        lambda run: run.update(eval={"HumanEval/0": []}),
        lambda run: run.update(pass_at_k={"plus": {"pass@1": 0.9}}),
        lambda run: run.update(pass_at_k={"plus": {"pass@1": float("nan")}}),
    ],
)
def test_evalplus_results_that_cannot_be_are_refused(change: Callable[[Any], None]):
    with pytest.raises(BOTH):
        read([changed(files("evalplus", "tiny_hf*")[0], change)])


# BenchLocal. Its own files are not at hand: these have the shape that its source gives them (protocol 1, schema 1).


def summary(scores: dict[str, float], *, total: float, **changes: Any) -> Source:
    results = [
        {"scenarioId": name, "status": "pass" if score == 100 else "fail", "score": score, "summary": "", "rawLog": ""}
        for name, score in scores.items()
    ]
    value = {
        "runId": "r1",
        "runDir": "/runs/r1",
        "benchPackId": "bugfind-15",
        "benchPackName": "BugFind-15",
        "runsPerTest": 1,
        "modelCount": 1,
        "scenarioCount": len(results),
        "events": [],
        "resultsByModel": {"local:v7b": results},
        "scores": {"local:v7b": {"totalScore": total, "categories": [{"id": "A", "label": "A", "score": total}]}},
    }
    return Source("summary.json", json.dumps(value | changes).encode())


def test_a_summary_is_rows_where_they_make_its_total():
    found = one([summary({"BF-01": 100, "BF-02": 35, "BF-03": 0}, total=45)])
    assert found.pack == "bugfind-15"
    assert points(found) == {("BF-01", 0): (1, "scored"), ("BF-02", 0): (0.35, "scored"), ("BF-03", 0): (0, "scored")}
    assert found.recorded["categories"] == {"A": 45}
    assert complaints(found) == ()


def test_a_total_that_the_pack_weighs_is_kept_alone():
    found = one([summary({"BF-01": 100, "BF-02": 0}, total=70)])
    assert (found.rows, found.totals.overall.points, found.totals.overall.of, found.totals.overall.items) == (
        None,
        70,
        100,
        2,
    )
    assert any("70" in note for note in found.notes)
    assert complaints(found) == ()


def test_what_the_provider_got_wrong_is_missing():
    source = summary({"BF-01": 100, "BF-02": 0}, total=50)
    broken = changed(source, lambda run: run["resultsByModel"]["local:v7b"][1].update(errorType="provider_error"))
    found = one([broken])
    assert points(found)["BF-02", 0] == (None, "infra")
    assert found.totals.missing == 1
    assert found.notes == ("1 of 2 answers ended in an error: missing here, failed in BenchLocal",)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.update(cancelled=True),
        lambda run: run.update(error="the app was closed"),
        lambda run: run.update(scenarioCount=15),
        lambda run: run["resultsByModel"]["local:v7b"][1].update(scenarioId="BF-01"),
        lambda run: run["resultsByModel"]["local:v7b"][1].update(status="won"),
        lambda run: run["resultsByModel"]["local:v7b"][1].update(score=101),
        lambda run: run["resultsByModel"]["local:v7b"][1].update(score=float("nan")),
        lambda run: run["scores"]["local:v7b"].update(totalScore=float("nan")),
        lambda run: run["resultsByModel"].update(other=[]),
    ],
)
def test_a_summary_that_is_not_whole_is_refused(change: Callable[[Any], None]):
    with pytest.raises(BOTH):
        read([changed(summary({"BF-01": 100, "BF-02": 0}, total=50), change)])


def test_of_several_models_one_is_chosen():
    def two(run: Any) -> None:
        run["resultsByModel"]["local:v3"] = run["resultsByModel"]["local:v7b"]
        run["scores"]["local:v3"] = run["scores"]["local:v7b"]

    source = changed(summary({"BF-01": 100, "BF-02": 0}, total=50), two)
    with pytest.raises(UsageError) as error:
        read([source])
    assert "local:v7b, local:v3" in (error.value.remedy or "")
    assert one([source], model="local:v3").recorded["model"] == "local:v3"


def cli_result() -> Source:
    def scenario(name: str, repeat: int, failure: str) -> dict[str, Any]:
        result = {"scenario_id": name, "passed": failure == "passed", "failure_mode": failure, "tokens_completion": 7}
        sampling = {"temperature": 0.6, "max_tokens": 4096}
        return {
            "id": name,
            "repeat_index": repeat,
            "result": result,
            "sampling_params": sampling,
            "raw_scenario": {"category": "A"},
        }

    ends = {
        "TC-01": ("passed", "passed"),
        "TC-02": ("token_limit", "http_error"),
        "TC-03": ("verifier_fail", "timeout"),
    }
    scenarios = [scenario(name, number, end) for name, each in ends.items() for number, end in enumerate(each, 1)]
    pack = {
        "pack_id": "toolcall-15",
        "version": "1.0.1",
        "upstream_commit": "abc",
        "scenario_count": 3,
        "passed": 2,
        "total": 6,
        "thinking_enabled": False,
        "scenarios": scenarios,
    }
    skipped = {"pack_id": "cli-40", "skipped": True, "scenarios": []}
    run = {
        "schema_version": "1",
        "runner_version": "0.9.2",
        "endpoint": "http://x",
        "model": "v7b",
        "packs": [pack, skipped],
    }
    return Source("result.json", json.dumps(run).encode())


def test_benchlocal_clis_result_is_read_with_its_conditions():
    found = one([cli_result()])
    assert points(found) == {
        ("TC-01", 0): (1, "scored"),
        ("TC-01", 1): (1, "scored"),
        ("TC-02", 0): (0, "truncated"),
        ("TC-02", 1): (None, "infra"),
        ("TC-03", 0): (0, "scored"),
        ("TC-03", 1): (None, "infra"),
    }
    assert (found.conditions.thinking, found.conditions.max_tokens) == ("off", 4096)
    assert found.conditions.sampling == {"temperature": 0.6}
    assert found.notes == (
        "cli-40 is left out: it was not run (skipped)",
        "2 of 6 answers ended in an error: missing here, failed in BenchLocal",
    )
    assert complaints(found) == ()


def test_a_part_of_a_pack_never_meets_the_whole():
    def part(run: Any) -> None:
        pack = run["packs"][0]
        pack.update(scenarios=pack["scenarios"][:2], scenario_count=1, catalog_scenario_count=3, passed=2, total=2)

    whole, some = one([cli_result()]), one([changed(cli_result(), part)])
    assert evidence.incomparable(whole.conditions, some.conditions, totals_alone=True) == ["dataset"]
    assert any("1 of the 3 scenarios" in note for note in some.notes)


@pytest.mark.parametrize("status", ["silent", "contaminated"])
def test_thinking_that_the_answers_belie_is_unknown(status: str):
    doubted = changed(cli_result(), lambda run: run.update(thinking_validity={"toolcall-15": {"status": status}}))
    found = one([doubted])
    assert found.conditions.thinking is None
    assert any(status in note for note in found.notes)


def test_the_junk_that_probes_benchlocals_graders_is_no_evidence():
    with pytest.raises(InvalidEvidence, match="junk"):
        read([changed(cli_result(), lambda run: run.update(model="negative-control", endpoint="negative-control"))])


# Totals


TABLE = """\
source: table 2
scores:
  toolcall-15: {score: 93.5, items: 15}
  bugfind-15:
    score: 25
    items: 15
    categories: {traps: {score: 0, items: 3}}
conditions:
  chat_template: v19
  sampling: {temperature: 0.6}
  thinking: "off"
"""


def test_a_table_is_totals_under_what_it_states():
    found = read([Source("table.yaml", TABLE.encode())])
    assert [(each.pack, each.totals.overall.points, each.rows) for each in found] == [
        ("toolcall-15", 93.5, None),
        ("bugfind-15", 25, None),
    ]
    assert found[0].conditions.chat_template == canonical.digest(b"v19")
    assert found[0].conditions.sampling == {"temperature": 0.6}
    assert all(complaints(each) == () for each in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("93.5", "101", "scores.toolcall-15.score"),
        ("93.5", "-1", "scores.toolcall-15.score"),
        ("93.5", ".nan", "line 3"),
        ("93.5", "true", "scores.toolcall-15.score"),
        (", items: 15}", "}", "scores.toolcall-15.items"),
        ("items: 15}", "items: 0}", "scores.toolcall-15.items"),
        ("items: 3", "items: 16", "categories"),
        ("bugfind-15:", "toolcall-15:", "given twice"),
        ("thinking:", "thought:", "conditions.thought"),
        ('"off"', "maybe", "conditions.thinking"),
        ("toolcall-15:", "Tool Call:", "scores"),
        ("source: table 2", "sauce: table 2", "sauce"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_field(old: str, new: str, said: str):
    with pytest.raises(UsageError) as error:
        read([Source("table.yaml", TABLE.replace(old, new).encode())], tool="totals")
    assert said in str(error.value)


# Any file


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return (
        [path, *(place for key in keys for place in _places(value[key], (*path, key)))]
        if path
        else [place for key in keys for place in _places(value[key], (key,))]
    )


_FUZZED = [
    ("lm-eval", lambda: files("lm-eval-0.4.13")),
    ("inspect", lambda: files("inspect", "whole.json")),
    ("evalplus", lambda: files("evalplus", "tiny_hf*")),
    ("benchlocal", lambda: [summary({"BF-01": 100, "BF-02": 35}, total=68)]),
    ("benchlocal", lambda: [cli_result()]),
]


@pytest.mark.parametrize(("tool", "sources"), _FUZZED)
@given(data=st.data())
@settings(max_examples=40)
def test_whatever_stands_in_a_field_is_read_or_refused_and_never_a_traceback(
    tool: str, sources: Callable[[], list[Source]], data: st.DataObject
):
    first, *rest = sources()
    value = json.loads(first.data)
    *above, last = data.draw(st.sampled_from(_places(value)))
    inner = value
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(_JSON)
    try:
        found = read([Source(first.name, json.dumps(value).encode()), *rest], tool=tool)
    except SluiceError as error:
        assert error.where  # noqa: PT017 - where it is wrong is what is claimed
        return
    assert all(complaints(each) == () for each in found)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes):
    for tool in (None, *TOOLS):
        with pytest.raises(SluiceError):
            read([Source("any", data)], tool=tool)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"results": {}, "results": {}}', "\ufeff{", '{"a": 1']
)
def test_json_that_is_torn_deep_or_double_is_refused(text: str):
    for tool in (None, *TOOLS):
        with pytest.raises(SluiceError):
            read([Source("results_1.json", text.encode())], tool=tool)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
        (gzip.compress(b"{}"), "gzip"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b" \n", "empty"),
        (b'{"results": {}, "configs": {', "not readable as JSON"),
    ],
)
def test_a_file_that_is_not_as_a_tool_wrote_it_is_told_by_what_it_is(data: bytes, said: str):
    for tool in (None, "lm-eval", "evalplus"):
        with pytest.raises(UsageError) as error:
            read([Source("results_1.json", data)], tool=tool)
        assert tool is not None or said in error.value.what


def test_a_byte_order_mark_changes_nothing():
    [log] = files("inspect", "whole.json")
    assert read([Source(log.name, b"\xef\xbb\xbf" + log.data)]) == read([log])
    table = TABLE.removeprefix("source: table 2\n")
    assert read([Source("table.yaml", f"\ufeff{table}".encode())]) == read([Source("table.yaml", table.encode())])


@pytest.mark.parametrize("folder", ["inspect", "evalplus", "lm-eval-0.4.13"])
def test_half_a_file_is_refused(folder: str):
    for source in files(folder):
        others = [each for each in files(folder) if each != source and folder.startswith("lm")]
        with pytest.raises(BOTH):
            read([Source(source.name, source.data[: len(source.data) // 2]), *others])
