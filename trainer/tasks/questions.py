"""Questions about a video: with the answers to choose from, or open."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import UserError
from trainer.label_metrics import accuracy
from trainer.losses import LossConfig, share_of_mean
from trainer.order import derive_key, permutation
from trainer.stream import Batch
from trainer.tasks.base import Reader, Task, TaskConfig
from trainer.tasks.heads import Mixer


class MultipleChoice(Task):
    """The option whose text, behind the question, is nearest to the video: no head, so it works zero-shot.

    Reads `question`, `options` and `answer_id` (options may repeat, so the answer's text would not do). Files often
    have the right option in one place; here options are shuffled by the sample's id, in training by seed and step too.
    spec: {"options": the most that a question has}.
    """

    name = "multiple_choice"
    fields = required = ("question", "options", "answer_id")
    headline = "accuracy"
    zero_shot = True

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        counts = [len(sample["options"]) for sample in read(None, cls.fields) if sample.get("options")]
        if not counts:
            raise UserError(f"task.name: {cls.name} needs the fields {', '.join(cls.fields)} in the samples' json")
        return {"options": max(counts)}

    def problem(self, fields: dict) -> str | None:
        options, answer = fields["options"], fields["answer_id"]
        if not (isinstance(options, list) and 0 < len(options) <= self.spec["options"]):
            return f"options are not 1 to {self.spec['options']} texts: {options!r:.80}"
        if not (isinstance(answer, int) and 0 <= answer < len(options)):
            return f"answer_id {answer!r:.20} is none of {len(options)} options"

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        inputs, texts, counts, right = super().inputs(batch, draw), [], [], []
        for fields, sample_id in zip(batch.fields, batch.sample_ids, strict=True):
            order = permutation(derive_key(*(draw or (0,)), "options", sample_id), len(fields["options"])).tolist()
            texts += [[f"{fields['question']} {fields['options'][i]}"] for i in order]
            counts.append(len(order))
            right.append(order.index(fields["answer_id"]))
        text = self.encoder(texts)
        more = {"tokens": text.tokens, "mask": text.mask, "counts": torch.tensor(counts), "right": torch.tensor(right)}
        return {**inputs, **more}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        video, text = self.video(inputs), self.encode_text(inputs["tokens"], inputs["mask"])
        counts, scale = inputs["counts"], self.model.logit_scale.exp()
        each = scale * (video.repeat_interleave(counts, dim=0) * text).sum(dim=1)
        there = torch.arange(self.spec["options"], device=counts.device) < counts[:, None]
        scores = each.new_full(there.shape, -torch.inf)
        scores[there] = each
        return {"scores": scores}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        return {"option": share_of_mean(F.cross_entropy(answers["scores"].float(), inputs["right"], reduction="none"))}

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": answers["scores"].float(), "right": inputs["right"]}

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        options = found["scores"].isfinite().sum(dim=1)
        reached = accuracy(found["scores"], found["right"], ks=(1,))["top-1"]
        return {"accuracy": reached}, {"accuracy": 100 * (1 / options).double().mean().item()}

    def protocol(self) -> str:
        return f"{'fine-tuned' if self.trained else 'zero-shot'}, question and option as one text"


class OpenQA(Task):
    """One of the most frequent answers of train; any other answer counts as wrong.

    Reads `questions` and `answers`, lists of one length a video. spec: {"answers": by falling frequency, "questions":
    of a video in a training step}.
    """

    name = "open_qa"
    fields = required = ("questions", "answers")
    headline = "top-1"

    def __init__(self, model, iterations: dict[str, int], spec: dict):
        super().__init__(model, iterations, spec)
        self.head = Mixer(model.architecture["embed_dim"], len(spec["answers"]))
        self.index = {answer: number for number, answer in enumerate(spec["answers"])}

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        counts = Counter(answer for sample in read("train", cls.fields) for answer in sample.get("answers") or [])
        if not counts:
            raise UserError(f"task.name: {cls.name} needs the fields questions and answers in the samples' json")
        ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
        return {"answers": ordered[: config.answers], "questions": config.questions}

    def problem(self, fields: dict) -> str | None:
        questions, answers = fields["questions"], fields["answers"]
        if not (isinstance(questions, list) and isinstance(answers, list) and 0 < len(questions) == len(answers)):
            return f"questions and answers are no two lists of one length: {questions!r:.40}, {answers!r:.40}"

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        inputs, texts, counts, right = super().inputs(batch, draw), [], [], []
        for fields, sample_id in zip(batch.fields, batch.sample_ids, strict=True):
            pairs = list(zip(fields["questions"], fields["answers"], strict=True))
            if draw:
                pairs = self._choose(pairs, derive_key(*draw, "questions", sample_id))
            texts += [[question] for question, _ in pairs]
            counts.append(len(pairs))
            right += [self.index.get(answer, -1) for _, answer in pairs]
        text = self.encoder(texts)
        more = {"tokens": text.tokens, "mask": text.mask, "counts": torch.tensor(counts), "right": torch.tensor(right)}
        return {**inputs, **more}

    def _choose(self, pairs: list[tuple[str, str]], key: int) -> list[tuple[str, str]]:
        """A training step's questions of a video: those with an answer that can be given, if there are any."""
        known = [pair for pair in pairs if pair[1] in self.index] or pairs
        return [known[i] for i in permutation(key, len(known))[: self.spec["questions"]]]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        video, question = self.video(inputs), self.encode_text(inputs["tokens"], inputs["mask"])
        scores = self.head(video.repeat_interleave(inputs["counts"], dim=0), question)
        return {"scores": scores}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        known = inputs["right"] >= 0
        each = F.cross_entropy(answers["scores"].float()[known], inputs["right"][known], reduction="none")
        return {"answer": share_of_mean(each)}

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": answers["scores"].float(), "right": inputs["right"]}

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        right = found["right"]
        guess = {f"top-{k}": 100 * ((right >= 0) & (right < k)).double().mean().item() for k in (1, 5)}
        return accuracy(found["scores"], right), guess  # chance: train's most frequent answers

    def protocol(self) -> str:
        return f"{'fine-tuned' if self.trained else 'untrained head'}, {len(self.index):,} answers of train"
