"""What users want or do not want to be served by: extensions or plans that are pinned or excluded by rule.

A rule is one line of text:

    pin reader@2 for ann                 plans with this extension version, wherever there is one
    exclude draft-* for team/* in digits nothing that matches, for these users, for this goal
    exclude plan:3f2a91c07d5e            one plan, by its id, for everybody

The subject is a shell pattern over extension names and ids, or `plan:` and one over plan ids. Who is meant is one over
users (`for`), over segments (`at`), and over goals (`in`); all, where nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from planner.choice.policy import Arm
from planner.errors import BadRequest, NoPlan, near

Verb = Literal["pin", "exclude"]
VERBS: tuple[str, ...] = get_args(Verb)
_PLAN = "plan:"
_WHO = {"for": "user", "at": "segment", "in": "goal"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `subject`, `user`, `segment` and `goal` are shell patterns; see the top of the file."""

    verb: Verb
    subject: str
    user: str = "*"
    segment: str = "*"
    goal: str = "*"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule of a line. Raises BadRequest that says which word is wrong."""
        words = text.split()
        if len(words) < 2:
            raise BadRequest(f"a rule is like 'pin reader@2 for ann', not {text[:80]!r}.")
        verb, subject, *rest = words
        if verb not in VERBS:
            raise BadRequest(f"rule {text[:80]!r}: {verb[:40]!r} is unknown.", hint=near(verb, VERBS))
        if subject == _PLAN:
            raise BadRequest(f"rule {text[:80]!r}: after 'plan:' comes the id of a plan.")
        who: dict[str, str] = {}
        for word, pattern in zip(rest[::2], [*rest[1::2], ""], strict=False):
            if word not in _WHO:
                raise BadRequest(f"rule {text[:80]!r}: {word[:40]!r} is not understood.", hint=near(word, _WHO))
            if not pattern:
                raise BadRequest(f"rule {text[:80]!r}: after {word!r} comes a {_WHO[word]}.")
            if _WHO[word] in who:
                raise BadRequest(f"rule {text[:80]!r}: {word!r} is said twice.")
            who[_WHO[word]] = pattern
        return cls("pin" if verb == "pin" else "exclude", subject, **who)

    def __str__(self) -> str:
        """The line it is read from."""
        who = [f" {word} {getattr(self, name)}" for word, name in _WHO.items() if getattr(self, name) != "*"]
        return f"{self.verb} {self.subject}{''.join(who)}"

    @property
    def of_extensions(self) -> bool:
        """Whether its subject are extensions, not plans."""
        return not self.subject.startswith(_PLAN)

    def concerns(self, goal: str, segment: str, user: str) -> bool:
        """Whether it is about such requests."""
        return fnmatchcase(user, self.user) and fnmatchcase(segment, self.segment) and fnmatchcase(goal, self.goal)

    def matches(self, plan: str, extensions: Sequence[str]) -> bool:
        """Whether it is about this plan: its id, or any of its extensions by name or id."""
        if self.subject.startswith(_PLAN):
            return fnmatchcase(plan, self.subject[len(_PLAN) :])
        return any(
            fnmatchcase(id_, self.subject) or fnmatchcase(id_.partition("@")[0], self.subject) for id_ in extensions
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules, in force together. Excluding beats pinning; a pin that no plan meets is without effect."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Rules:
        """The rules of lines; empty ones and what follows a `#` are left out. Raises BadRequest."""
        texts = [line.partition("#")[0].strip() for line in lines]
        return cls(tuple([Rule.parse(text) for text in texts if text]))

    def concerning(self, goal: str, segment: str = "", user: str = "") -> tuple[Rule, ...]:
        """Those that are about such requests; what `marked` does may be kept per tuple."""
        return tuple([rule for rule in self.rules if rule.concerns(goal, segment, user)])


def marked(arms: Sequence[Arm], extensions: Sequence[Sequence[str]], rules: Sequence[Rule]) -> tuple[Arm, ...]:
    """The arms as the rules want them. `extensions[i]` are the ids of the extensions in the plan of arm i.

    Raises NoPlan, naming the rules, when they leave none.
    """
    made = []
    for arm, ids in zip(arms, extensions, strict=True):
        said = {rule.verb for rule in rules if rule.matches(arm.plan, ids)}
        made.append(replace(arm, pinned="pin" in said, excluded="exclude" in said))
    if made and all(arm.excluded for arm in made):
        reasons = ", ".join(f"'{rule}'" for rule in rules if rule.verb == "exclude")
        raise NoPlan(
            f"all {len(made)} plans are excluded by rule: {reasons[:400]}.", hint="Take back one of the rules."
        )
    return tuple(made)
