"""A byte-level BPE of 512 tokens and a chat template, both in the form that Hugging Face loads.

Training time is paid by the token, so both are made short. The pre-tokenizer keeps digits and capitals single (sums and
letter work need them apart) and lets JSON punctuation join (`": "` can be one token). The template offers each tool as
one line, `name argument:type …`; calls come back as JSON in `<tool_call>` tags, as Qwen3 and Hermes models write them.
Turns are parted by a newline and none follows the last: calibration then reads no token that training never saw.
"""

from __future__ import annotations

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.toy import skills
from stages.toy.samples import Sample, row

VOCABULARY = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
MAX_LENGTH = 1024

# newline | word, its space or colon in front | digit | capital | JSON punctuation across one space | anything else
PIECES = r"\n|[: ]?[a-z_]+| ?[0-9]|[A-Z]|[^\w\s]+(?: [^\w\s]+)?|\s|\w"

TEMPLATE = r"""
{%- set start, end = '<|im_start|>', '<|im_end|>' %}
{%- if tools or messages[0].role == 'system' %}
    {{- start + 'system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
    {%- if tools %}
        {%- if messages[0].role == 'system' %}{{- '\n\n' }}{%- endif %}
        {{- 'tools' }}
        {%- for tool in tools %}
            {%- set function = tool.function if tool.function is defined else tool %}
            {{- '\n' + function.name }}
            {%- for name, schema in function.parameters.properties.items() %}
                {{- ' ' + name + ':' + (schema.enum | join('|') if schema.enum is defined else schema.type) }}
            {%- endfor %}
        {%- endfor %}
    {%- endif %}
    {{- end }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {%- if not loop.first or tools or messages[0].role == 'system' %}{{- '\n' }}{%- endif %}
    {%- if message.role == 'user' %}
        {{- start + 'user\n' + message.content + end }}
    {%- elif message.role == 'assistant' %}
        {{- start + 'assistant\n' }}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
        {%- endif %}
        {%- if message.content is defined and message.content %}{{- message.content }}{%- endif %}
        {%- if message.tool_calls is defined and message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if not loop.first or (message.content is defined and message.content) %}{{- '\n' }}{%- endif %}
                {%- set function = call.function if call.function is defined else call %}
                {{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
                {{- function.arguments if function.arguments is string else function.arguments | tojson }}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- end }}
    {%- elif message.role == 'tool' %}
        {{- start + 'user\n<tool_response>\n' + message.content + '\n</tool_response>' + end }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\n' + start + 'assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""".strip()


def build_tokenizer(seed: int = 0, samples_a_skill: int = 400) -> PreTrainedTokenizerFast:
    """Train the BPE on rendered samples of the training side and attach the template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    tokenizer = _wrap(core)
    rng = random.Random(f"tokenizer {seed}")
    corpus = [
        tokenizer.apply_chat_template(**_chat(skills.draw(skill, rng, scored=False)), tokenize=False)
        for skill in skills.SKILLS
        for _ in range(samples_a_skill)
    ]
    for tag in SPECIAL + TAGS:  # they are matched before the BPE sees the text: no merge may be spent on them
        corpus = [text.replace(tag, "\n") for text in corpus]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return _wrap(core)


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    end_of_text, _, end_of_turn = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end_of_turn,
        pad_token=end_of_text,
        chat_template=TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _chat(sample: Sample) -> dict[str, object]:
    chat = row(sample)
    return {"conversation": chat["messages"], "tools": chat.get("tools")}


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample, *, thinking: bool) -> tuple[list[int], list[int]]:
    """A sample as (prompt ids, answer ids), split exactly where generation starts.

    Thinking off, the empty reasoning belongs to the prompt, because the template writes it and not the model.
    """
    chat = _chat(sample)
    whole = tokenizer.apply_chat_template(**chat, tokenize=False)
    chat["conversation"] = chat["conversation"][:1]  # type: ignore[index]
    prompt = tokenizer.apply_chat_template(**chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    answer = whole.removeprefix(prompt) if thinking else whole.split("</think>\n\n", 1)[1]
    return _ids(tokenizer, prompt), _ids(tokenizer, answer)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
