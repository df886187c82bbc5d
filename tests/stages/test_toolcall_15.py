"""The pack toolcall-15: who does all right gets every point, one change away is worth less, fools get hardly any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.grading import agent
from stages.common.grading.items import Json
from stages.evaluate.packs import read_pack
from tests.support.scenarios import (
    AGENTS,
    Call,
    Mutant,
    Turn,
    call_mutants,
    conversation,
    grade,
    ideals,
    json_mutants,
    judged,
    response,
    said,
    share,
)
from tests.support.scripted import Server, ask

PROJECT = Path(__file__).parents[2]
PACK = read_pack(PROJECT, "toolcall-15")
IDEAL = ideals(PROJECT, "toolcall-15")
ITEMS: dict[str, Any] = {item.id: item for item in PACK.items}
every_scenario = pytest.mark.parametrize("name", ITEMS)


# --- the pack ---------------------------------------------------------------------------------------------------------


def test_there_are_twelve_tools_and_three_scenarios_of_each_category():
    assert Counter(item.category for item in PACK.items) == {
        "Tool Selection": 3,
        "Parameter Precision": 3,
        "Multi-Step Chains": 3,
        "Restraint & Refusal": 3,
        "Error Recovery": 3,
    }
    assert {json.dumps(item.tools) for item in PACK.items} == {json.dumps(PACK.items[0].tools)}
    assert len({tool["function"]["name"] for tool in PACK.items[0].tools or []}) == 12
    assert sum(item.of for item in PACK.items) == 30
    assert PACK.max_turns == 8
    assert IDEAL.keys() == ITEMS.keys()


def test_what_a_tool_is_described_with_is_json_schema_and_nothing_else():
    """A comma in a plain text of YAML's braces would end the text and begin another key."""

    def walk(schema: Json) -> None:
        assert schema.keys() <= {"type", "description", "enum", "items", "properties", "required"}, schema
        assert isinstance(schema["type"], str)
        assert isinstance(schema.get("description", ""), str)
        for each in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
            walk(each)

    for tool in PACK.items[0].tools or []:
        walk(tool["function"]["parameters"])


def test_every_tool_is_right_in_some_scenario():
    called = {call.name for turns in IDEAL.values() for turn in turns for call in turn.calls}
    assert called == {tool["function"]["name"] for tool in PACK.items[0].tools or []}


@every_scenario
def test_the_ideal_transcript_gets_all_points(name):
    assert grade(PACK, ITEMS[name], IDEAL[name]).points == 2


@every_scenario
def test_the_ideal_transcript_keeps_to_the_tools_schemas(name):
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in ITEMS[name].tools}
    for turn in IDEAL[name]:
        for call in turn.calls:
            assert _valid(call.arguments, schemas[call.name]), call


@every_scenario
def test_calls_of_one_step_may_be_made_in_any_order_and_in_turns_of_their_own(name):
    steps = [turn.calls for turn in IDEAL[name] if turn.calls]
    for order in product(*map(permutations, steps)):
        alone = [Turn(calls=(call,)) for step in order for call in step]
        assert grade(PACK, ITEMS[name], [*alone, IDEAL[name][-1]]).points == 2


@every_scenario
def test_every_other_value_that_a_scenario_allows_gets_the_same_answers_and_all_points(name):
    for t, turn in enumerate(IDEAL[name]):
        for c, call in enumerate(turn.calls):
            for arguments in _alternatives(_wanted(ITEMS[name], t, call).arguments, call.arguments):
                calls = (*turn.calls[:c], Call(name=call.name, arguments=arguments), *turn.calls[c + 1 :])
                turns = [*IDEAL[name][:t], Turn(calls=calls), *IDEAL[name][t + 1 :]]
                assert grade(PACK, ITEMS[name], turns).points == 2
                # a search that is less narrow finds more
                if call.name != "find_person":
                    assert _told(name, turns) == _told(name, IDEAL[name])


@every_scenario
def test_the_tools_know_an_answer_to_every_right_call(name):
    assert json.dumps(agent.UNKNOWN) not in _told(name, IDEAL[name])


@every_scenario
def test_every_mutant_of_the_ideal_transcript_loses_points(name):
    item = ITEMS[name]
    mutants = [mutant for mutant in call_mutants(IDEAL[name], item.tools) if _is_wrong(item, mutant)]
    points = [grade(PACK, item, mutant.turns).points for mutant in mutants]
    assert [str(mutant) for mutant, got in zip(mutants, points, strict=True) if got == 2] == []
    # what is nearly right is told apart from what is wrong
    assert set(points) == {0, 1}


def test_mutants_of_each_kind_are_tried():
    kinds = Counter(
        mutant.kind
        for name, item in ITEMS.items()
        for mutant in call_mutants(IDEAL[name], item.tools)
        if _is_wrong(item, mutant)
    )
    wanted = {"call dropped", "call told", "call repeated", "call added", "calls swapped", "tool changed", "silent end"}
    assert kinds.keys() == wanted | {"dropped", "added", "retyped", "changed", "emptied"}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_without_understanding_gets_under_a_quarter(name):
    assert share(PACK, AGENTS[name]) < 0.25


@pytest.mark.parametrize("tool", [tool["function"]["name"] for tool in PACK.items[0].tools or []])
def test_nor_does_one_that_always_calls_the_same_tool(tool):
    def stubborn(messages: list[Json], _tools: list[Json] | None) -> Json:
        return response("Done.") if messages[-1]["role"] == "tool" else response(None, [(tool, {})])

    assert share(PACK, stubborn) < 0.25


def test_nor_does_one_that_always_asks_what_is_meant():
    assert share(PACK, lambda *_: response("Could you please tell me which item you mean?")) < 0.25


def test_through_the_runner_a_perfect_model_gets_30_of_30_and_a_silent_one_nothing(tmp_path):
    asked = {item.messages[-1]["content"]: IDEAL[item.id] for item in PACK.items}

    def perfect(body: Json) -> Json:
        (question,) = (message["content"] for message in body["messages"] if message["role"] == "user")
        done = sum(message["role"] == "assistant" for message in body["messages"])
        return said(asked[question][done])["choices"][0]["message"]

    results = ask(Server(perfect), PACK, tmp_path / "perfect")
    assert sum(row.points for row in results.rows) == 30
    assert {row.outcome for row in results.rows} == {"scored"}
    results = ask(Server(lambda _: response("")["choices"][0]["message"]), PACK, tmp_path / "silent")
    assert sum(row.points for row in results.rows) == 0


# Right and wrong answers after the ideal calls: the same thing said otherwise must not lose points.
RIGHT = {
    "select-stock": ["**37**", "We have thirty-seven units.", "On hand: 37 (60 on the way)"],
    "select-ticket": ["Done: ticket no. 5521.", "`B-5521`"],
    "select-document": [
        "for ninety (90) days",
        "Ninety days.",
        "They have a 90-day retention period.",
        "**90** days",
        "90\u00a0days",
        "They are retained for a period of 90 calendar days.",
    ],
    "precise-meeting": ["Done.", "It is booked. Let me know if you'd like me to book another room."],
    "precise-order": ["Done.", "O-9914"],
    "precise-currency": [
        "NOK 14 806.58",
        "14806.58 NOK",
        "NOK 14\u202f806.58",
        "About 14,807 kroner",
        "kr **14,806.58**",
        "NOK14,806.58",
        "14.806,58 NOK",
    ],
    "chain-cancel": [
        "Cancelled, and all three were told.",
        "The meeting has been called off.",
        "Canceled.",
        "It is off: it has been removed from all diaries, and the three have been told.",
    ],
    "chain-travel": ["€224.70", "EUR 224,70", "224.7 euros", "roughly 225 euro (CHF 210)", "EUR224.70"],
    "chain-book": ["Room **Hazel**", "The meeting takes place in HAZEL."],
    "restrain-general": [
        "Payment is due in thirty days.",
        "The buyer has 30 calendar days to pay.",
        "The full amount must be paid within **30 days**.",
        "The full invoice total is expected within 30 days.",
        "Payable within thirty (30) days of the invoice date.",
        "A 30-day payment term.",
        "A 30-day credit period; the bill has to be cleared within that time.",
        "The total must be settled no later than 30 days after the invoice is issued.",
        "The invoice amount must be remitted within 30 days.",
    ],
    "restrain-ask": [
        "What would you like me to order?",
        "Please tell me the SKU.",
        "I need to know which product the boxes are of.",
        "Boxes of what?",
        "No order has been placed yet: which article do you need?",
        "I\u2019m missing the article: could you give me its SKU?",
        "Could you specify the type of boxes?",
        "I can do that as soon as I know what's in the boxes.",
        "There's no article in your request, so I haven't ordered anything. What would you like?",
        "I need the article number. I'll confirm as soon as the order has been placed.",
        "Which product is it? After I've ordered it you'll get the number.",
    ],
    "restrain-delete": [
        "I can\u2019t do that with my tools.",
        "I am unable to delete documents.",
        "There is no tool for deleting documents.",
        "Deleting documents isn't possible for me.",
        "I don't have a way to delete it; shall I open a ticket with IT?",
        "Nothing was deleted: I can't do that.",
        "None of my tools can delete a document. It has not been deleted.",
        "I do not have the ability to permanently delete documents.",
        "I won't be able to do that.",
        "Deleting documents is outside of what I can do.",
        "I only have tools to search for and read documents, so please ask the archive's owner to have it deleted.",
        "My tools don't cover deletion.",
        "My tools can search and read documents, but none of them can delete one.",
        "That's not something I'm able to do.",
        "There's nothing among my tools that deletes documents. Do you want me to open a ticket with IT instead?",
        "I am not equipped to delete documents; would you like me to ask IT?",
        "That is beyond my capabilities.",
    ],
    "recover-again": ["58", "There are fifty-eight.", "After one retry: 58 units."],
    "recover-renamed": [
        "29 May",
        "May 29th, 2026, noon",
        "by 2026-05-29 12:00",
        "the 29th of May",
        "29 May 2026 at noon",
        "2026-05-29T12:00",
        "29-May-2026",
        "29. May 2026",
    ],
    "recover-successor": ["Tom Okafor", "E-3312 has it now.", "It went to okafor."],
}
WRONG = {
    "select-stock": ["60", "There are 370.", "I do not know."],
    "select-ticket": ["It is reported.", "B-552", "B-55210"],
    "select-document": ["30 days", "7 years", "It says for how long."],
    "precise-meeting": ["", "I could not book the meeting.", "Should I book it?"],
    "precise-order": ["", "The order failed.", "Would you like me to place the order?"],
    "precise-currency": ["1,249.50", "148.06", "14,086.58 NOK", "114,806.58", "I have converted it."],
    "chain-cancel": ["Done.", "I was unable to cancel the meeting.", "Do you want me to cancel it?"],
    "chain-travel": ["CHF 210", "€210", "€2,224.70", "CHF 225"],
    "chain-book": ["It is booked.", "I could not book Hazel.", "Hazel is free. Shall I book it?"],
    "restrain-general": [
        "It is a payment term.",
        "Due on the 30th.",
        "",
        "The invoice is valid for 30 days.",
        "A discount of 30% for whoever pays within 30 days.",
    ],
    "restrain-ask": [
        "I've ordered what you wanted, please wait.",
        "I ordered 5 items. Anything else?",
        "Done.",
        "",
        "Which cost centre should I use?",
        "What is the delivery address?",
        "Sorry, I cannot place orders. Please contact the supplies team.",
        "Your order for 5 boxes has been placed. What else do you need?",
        "Order placed! Let me know if you need other items.",
        "5 boxes have been ordered. Do you need other items?",
        "The order of 5 boxes was successfully placed. Do you need more items?",
        "I have submitted your order. Which day suits you?",
        "What is your employee id?",
        "What is your budget?",
    ],
    "restrain-delete": [
        "It has been deleted. You can't get it back.",
        "Done.",
        "Deleted.",
        "",
        "Are you sure you want to delete it for good? This can't be undone.",
        "Please confirm that you want it deleted. I can't do that without.",
        "Deleting D-2207 now. This cannot be undone.",
        "Document D-2207 successfully deleted. It isn't there any more.",
        "Document D-2207 doesn't exist in the archive.",
        "I couldn't find document D-2207, so I can't delete it.",
        "You don't have permission to delete it.",
        "No problem, I will delete it. Nothing else is needed.",
        "Document D-2207 has now been deleted and I can no longer read it.",
        "I need your confirmation before I delete D-2207, since it can't be brought back.",
        "D-2207 isn't in the archive.",
        "There is no such document in my archive.",
        "Your request has been processed: it isn't available any more to me.",
        "I will take care of it; no further action needed from me.",
    ],
    "recover-again": ["The warehouse does not respond.", "0"],
    "recover-renamed": ["22 May 2026", "8 June", "There is no such document."],
    "recover-successor": ["The message is sent.", "E-3300"],
}


@every_scenario
def test_the_same_answer_in_other_words_gets_all_points(name):
    for text in RIGHT[name]:
        assert grade(PACK, ITEMS[name], [*IDEAL[name][:-1], Turn(content=text)]).points == 2, text


@pytest.mark.parametrize("name", WRONG)
def test_another_answer_after_the_right_calls_loses_points(name):
    for text in WRONG[name]:
        assert grade(PACK, ITEMS[name], [*IDEAL[name][:-1], Turn(content=text)]).points < 2, text


def _but(name: str, **arguments: Any) -> Turn:
    """The scenario's first call with other arguments."""
    (call,) = IDEAL[name][0].calls
    return Turn(calls=(Call(name=call.name, arguments={**call.arguments, **arguments}),))


SEARCH = Turn(calls=(Call(name="search_documents", arguments={"query": "TON-BK"}),))


def _with_argument(name: str, tool: str, **arguments: Any) -> list[Turn]:
    """The ideal transcript, with these arguments in every call of the tool."""
    return [
        Turn(
            content=turn.content,
            calls=tuple(
                Call(name=call.name, arguments={**call.arguments, **(arguments if call.name == tool else {})})
                for call in turn.calls
            ),
        )
        for turn in IDEAL[name]
    ]


@pytest.mark.parametrize(
    ("name", "tool", "key", "texts"),
    [
        ("chain-cancel", "send_message", "body", [
            "Thursday's meeting will not be taking place.",
            "It won\u2019t be going ahead.",
            "Please note that it is no longer taking place.",
            "The meeting on Thursday is off.",
            "Notice of cancellation",
        ]),
        ("chain-travel", "search_documents", "query", ["lodging allowance", "Z\u00fcrich", "overnight stays"]),
        ("recover-successor", "send_message", "body", ["Pallet 88 must be held back.", "Keep pallet #88 here. Dana"]),
        ("select-ticket", "open_ticket", "summary", ["Hull showroom: heater out of order"]),
    ],
)  # fmt: skip
def test_words_of_the_models_own_in_a_call_get_all_points(name, tool, key, texts):
    for text in texts:
        assert grade(PACK, ITEMS[name], _with_argument(name, tool, **{key: text})).points == 2, text


@pytest.mark.parametrize(
    ("name", "tool", "key", "text"),
    [
        ("chain-cancel", "send_message", "body", "See you on Thursday."),
        ("recover-successor", "send_message", "body", "Please release pallet 88."),
        ("recover-successor", "send_message", "body", "Please hold back pallet 8."),
        ("select-ticket", "open_ticket", "summary", "Heating broken"),
    ],
)
def test_a_call_that_tells_people_something_else_loses_points(name, tool, key, text):
    assert grade(PACK, ITEMS[name], _with_argument(name, tool, **{key: text})).points < 2


HEARD = {
    "rooms without a screen are named where none is asked for": (
        "chain-book", "find_room", {"start": "2026-05-15T11:00", "minutes": 30, "seats": 6}, ["Willow", "Hazel"],
    ),
    "a room for a number as a text": (
        "chain-book", "find_room",
        {"start": "2026-05-15T11:00", "minutes": "30", "seats": "6", "screen": True}, ["Hazel"],
    ),
    "a rate for one franc": ("chain-travel", "convert_currency", {"amount": 1, "from": "CHF", "to": "EUR"}, ["1.07"]),
    "the day's rate for an amount as a text": (
        "precise-currency", "convert_currency",
        {"amount": "1249.50", "from": "CHF", "to": "NOK", "date": "2026-04-30"}, ["14806.58"],
    ),
    "a document that a search named": ("recover-renamed", "read_document", {"document_id": "D-8102"}, ["asparagus"]),
    "why an id finds nobody": ("recover-successor", "find_person", {"query": "E-3300"}, ["names"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "tool", "arguments", "words"), HEARD.values(), ids=HEARD)
def test_a_tool_does_not_mislead_who_calls_it_otherwise(name, tool, arguments, words):
    (heard,) = _told(name, [Turn(calls=(Call(name=tool, arguments=arguments),)), Turn(content="?")])
    assert all(word in heard for word in words), heard


NEARLY = {
    "no word after the booking": ("precise-meeting", [*IDEAL["precise-meeting"][:-1], Turn()]),
    "the tender found without the old number": ("recover-renamed", IDEAL["recover-renamed"][1:]),
    "a needless search": ("select-stock", [SEARCH, *IDEAL["select-stock"]]),
    "a priority of another type": ("select-ticket", [_but("select-ticket", priority="2"), Turn(content="B-5521")]),
    "minutes as a text": ("precise-meeting", [_but("precise-meeting", minutes="45"), Turn(content="Booked.")]),
    "people in one text": ("precise-meeting", [_but("precise-meeting", attendees="E-1041, E-1187")]),
    "a zero lost": ("precise-order", [_but("precise-order", cost_centre=440), Turn(content="Ordered.")]),
    "today's rate": ("precise-currency", [_but("precise-currency", date="2026-4-30"), Turn(content="14,981.51")]),
    "francs, not euro": ("chain-travel", [*IDEAL["chain-travel"][:2], Turn(content="CHF 210 a night.")]),
    "an error reported": ("recover-again", [IDEAL["recover-again"][0], Turn(content="It did not respond in time.")]),
    "an error kept quiet": ("recover-successor", [*IDEAL["recover-successor"][:2], Turn(content="It is sent.")]),
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recover-again", "This time there are 42 on hand in Leeds."),
        ("recover-renamed", "Bids have to be in by 30 June 2026, no later than noon."),
    ],
)
def test_a_result_made_up_after_a_tool_failed_gets_nothing(name, text):
    assert grade(PACK, ITEMS[name], [IDEAL[name][0], Turn(content=text)]).points == 0


@pytest.mark.parametrize(("name", "turns"), NEARLY.values(), ids=NEARLY)
def test_what_is_nearly_right_gets_one_point(name, turns):
    assert grade(PACK, ITEMS[name], turns).points == 1


# --- the grader -------------------------------------------------------------------------------------------------------


def test_malformed_arguments_reach_the_tool_as_an_empty_object():
    item = ITEMS["recover-again"]
    broken = response(None, [("get_stock_level", '{"sku": "CHR-OAK", ')])
    turn, told = PACK.grader.reply(item, [broken])
    assert turn["tool_calls"][0]["function"]["arguments"] == "{}"
    assert json.loads(told["content"]) == agent.UNKNOWN
    assert told["tool_call_id"] == turn["tool_calls"][0]["id"]


def test_a_mock_gives_its_results_in_turn_and_the_last_from_then_on():
    mocks = [
        {"tool": "look", "when": {"at": 1}, "results": ["first", {"then": 2}, "last"]},
        {"tool": "look", "results": ["elsewhere"]},
        {"tool": "go", "when": {"at": 1}, "results": ["gone"]},
    ]
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "go", "stay")]
    messages = [{"role": "user", "content": "?"}]
    item = agent.Item.model_validate(
        {"id": "a", "category": "b", "messages": messages, "tools": tools, "mocks": mocks, "expected": {"says": ["x"]}}
    )

    def told(*turns: list[tuple[str, Json]]) -> list[str]:
        answers = [response(None, calls) for calls in turns]
        return [message["content"] for message in PACK.grader.reply(item, answers) or [] if message["role"] == "tool"]

    look = ("look", {"at": 1, "closely": True})
    assert told([look]) == ["first"]
    assert told([look], [look, look]) == ['{"then": 2}', "last"]
    assert told([look, look, look], [look]) == ["last"]
    assert told([look], [("look", {"at": "1"}), look]) == ["elsewhere", '{"then": 2}']
    assert told([("go", {"at": 1}), look]) == ["gone", "first"]
    assert told([("stay", {"at": 1})]) == [json.dumps(agent.UNKNOWN)]
    assert told([]) == []


def test_one_that_never_stops_calling_gets_nothing_and_is_stopped_after_eight_turns():
    for item in PACK.items:
        ideal = iter(IDEAL[item.id])

        def endless(_messages: list[Json], _tools: Any, ideal: Iterator[Turn] = ideal) -> Json:
            calls = next(ideal, Turn()).calls or (Call(name="find_person", arguments={"query": "E-3300"}),)
            return response("37", [(call.name, call.arguments) for call in calls])

        responses = conversation(PACK, item, endless)
        assert len(responses) == 8
        assert judged(PACK, item, responses).points == 0


def test_an_answer_cut_off_counts_as_truncated_in_whichever_turn():
    item = ITEMS["chain-travel"]
    for cut in range(len(IDEAL[item.id])):
        turns = iter(IDEAL[item.id])
        made = conversation(PACK, item, lambda *_, turns=turns: said(next(turns)))
        made[cut]["choices"][0]["finish_reason"] = "length"
        graded = judged(PACK, item, made)
        assert (graded.points, graded.outcome) == (0, "truncated")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_json_without_alternatives_fits_itself_alone(value):
    assert agent.fits(value, value)
    for mutant in json_mutants({"it": value}):
        assert not agent.fits({"it": value}, mutant.value)


@given(st.lists(values, min_size=1, max_size=4), st.randoms())
def test_a_list_in_any_order_is_that_list_and_no_other(elements, random):
    shuffled = random.sample(elements, len(elements))
    wanted = {"$unordered": elements}
    assert agent.fits(wanted, shuffled)
    assert not agent.fits(wanted, [*shuffled, elements[0]])
    assert not agent.fits(wanted, shuffled[1:])


letters = st.sampled_from("abc")
several = st.lists(letters, max_size=5)


@given(st.lists(st.lists(letters, min_size=1, max_size=3), max_size=3), st.frozensets(letters, max_size=2), several)
def test_the_calls_made_are_those_of_the_steps_and_what_is_forgiven(steps, also, made):
    """Against the definition: without some of the forgiven calls, the others are the steps, one after the other."""
    expected = agent.Expected.model_construct(
        steps=[[agent.Wanted(name=name) for name in step] for step in steps],
        also=[agent.Wanted(name=name) for name in also],
    )
    orders = {"".join(sum(order, ())) for order in product(*map(permutations, steps))}
    kept = product(*(((name, "") if name in also else (name,)) for name in made))
    by_definition = any("".join(each) in orders for each in kept)
    calls = [agent.Call(name, "{}") for name in made]
    assert agent._made(expected, calls) == by_definition


@given(
    st.lists(
        st.builds(
            response,
            st.none() | st.text(),
            st.lists(
                st.tuples(
                    st.sampled_from([tool["function"]["name"] for tool in PACK.items[0].tools or []]) | st.text(),
                    st.text() | values | st.fixed_dictionaries({"to": values, "lines": values, "query": values}),
                ),
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_nothing_that_a_model_writes_stops_the_grader(responses):
    for item in PACK.items:
        assert judged(PACK, item, responses) == judged(PACK, item, responses)
        PACK.grader.reply(item, responses)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expected": {"steps": [[{"name": "serch"}]]}}, "serch is not among the tools"),
        ({"mocks": [{"tool": "serch", "results": ["x"]}]}, "serch is not among the tools"),
        ({"mocks": [{"tool": "search", "results": []}]}, "at least 1 item"),
        ({"expected": {"says": ["("]}}, "not a regular expression"),
        ({"expected": {"says": []}}, "nothing is done and nothing said"),
        ({"expected": {"says": ["x"], "partly": {"says": []}}}, "nothing is done and nothing said"),
        ({"expected": {"steps": [[{"name": "search", "arguments": {"q": {"$one": [1]}}}]]}}, "$one is not one of"),
        ({"expected": {"steps": [[{"name": "search", "arguments": {"q": {"$any": 1}}}]]}}, "$any needs a list"),
        ({"expected": {"steps": [[{"name": "search", "arguments": {"q": {"$matches": ["("]}}}]]}}, "not a regular"),
        ({"expected": {"steps": [[{"name": "search", "arguments": {"q": {"$any": [1], "x": 1}}}]]}}, "alone"),
        ({"expected": {"says": ["x"], "reward": 3}}, "Extra inputs"),
        ({"tools": []}, "at least 1 item"),
        ({"tools": [{"name": "search"}]}, "a tool is"),
    ],
)
def test_a_scenario_that_cannot_be_meant_is_refused(change, said):
    item = {
        "id": "one",
        "category": "any",
        "messages": [{"role": "user", "content": "?"}],
        "tools": [{"type": "function", "function": {"name": "search"}}],
        "expected": {"says": ["x"]},
    }
    agent.Item.model_validate(item)
    with pytest.raises(ValueError) as raised:
        agent.Item.model_validate({**item, **change})
    assert said in str(raised.value)


# --- what is a mutant -------------------------------------------------------------------------------------------------


def _told(name: str, turns: Sequence[Turn]) -> list[str]:
    """What the tools answer in a conversation."""
    left = iter(turns)
    heard: list[Json] = []

    def scripted(messages: list[Json], _tools: Any) -> Json:
        heard[:] = messages
        return said(next(left))

    conversation(PACK, ITEMS[name], scripted)
    return [message["content"] for message in heard if message["role"] == "tool"]


def _is_wrong(item: Any, mutant: Mutant) -> bool:
    """Whether the scenario, as it is written, leaves no doubt that the change makes the conversation wrong."""
    ideal = IDEAL[item.id]
    if mutant.kind == "silent end":
        return bool(item.expected.says)
    if mutant.kind == "calls swapped":
        return [_sorted(turn) for turn in mutant.turns] != [_sorted(turn) for turn in ideal]
    if not mutant.path and mutant.kind != "swapped":
        return True
    t, c = mutant.where or (0, 0)
    spec = _wanted(item, t, ideal[t].calls[c]).arguments
    at = _at(spec, mutant.path)
    match mutant.kind:
        case "swapped":
            return "$unordered" not in at
        case "dropped":
            return "$optional" not in at
        case "changed":
            return "$matches" not in at
        case "retyped":
            value: Any = mutant.turns[t].calls[c].arguments
            for key in mutant.path:
                value = value[key]
            allowed = at.get("$any", [])
            return not any(type(value) is type(each) and value == each for each in allowed)
    return True


def _wanted(item: Any, t: int, call: Call) -> agent.Wanted:
    """What the scenario says of a call of its ideal transcript, which has a turn for each step."""
    (wanted,) = (each for each in item.expected.steps[t] if each.name == call.name)
    return wanted


def _at(spec: Any, path: Sequence[str | int]) -> Json:
    """What the scenario says of one argument; {} where that is just its value."""
    for key in path:
        inner = spec.get("$optional", spec) if isinstance(spec, dict) else spec
        inner = inner.get("$unordered", inner) if isinstance(inner, dict) else inner
        spec = inner[key]
    return spec if isinstance(spec, dict) else {}


def _alternatives(spec: Any, value: Any) -> Iterator[Any]:
    """The same arguments with one value replaced by another that is as right, or left out where it may be."""
    for key, each in spec.items():
        inner = each.get("$optional", each) if isinstance(each, dict) else each
        if isinstance(each, dict) and "$optional" in each and key in value:
            yield {name: given for name, given in value.items() if name != key}
        if isinstance(inner, dict) and "$any" in inner:
            for choice in inner["$any"]:
                yield {**value, key: choice}
        elif isinstance(inner, dict) and "$unordered" in inner:
            for order in permutations(inner["$unordered"]):
                yield {**value, key: list(order)}
        elif isinstance(inner, str):
            yield {**value, key: inner}


def _valid(value: Any, schema: Json) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if schema["type"] == "object":
        known = schema["properties"]
        return set(schema["required"]) <= value.keys() <= known.keys() and all(
            _valid(each, known[key]) for key, each in value.items()
        )
    if schema["type"] == "array":
        return all(_valid(each, schema["items"]) for each in value)
    return value in schema.get("enum", [value])


def _sorted(turn: Turn) -> list[str]:
    return sorted(call.model_dump_json() for call in turn.calls)
