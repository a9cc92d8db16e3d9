"""The spans of each task's prompts, for `by_pattern(model, prompts, SPANS[task])`."""

from collections.abc import Mapping

_SAYS = r"^(?P<opener>the \w+ says? that )?.*?"
_IOI = r" .*the (?P<place>\w+) , (?P<s2>(?P=s1)) \w+ a (?P<object>\w+) \w+$"

SPANS: Mapping[str, tuple[str, ...]] = {
    # the indirect object and the repeated subject, whichever comes first
    "ioi": (
        r"^\w+ (?P<io>\w+) and (?P<s1>\w+)" + _IOI,
        r"^\w+ (?P<s1>\w+) and (?P<io>\w+)" + _IOI,
    ),
    "agreement_simple": (r"^the (?P<adjective>\w+) (?P<subject>\w+)$",),
    "agreement_pp": (r"^the (?P<subject>\w+) (?P<preposition>\w+) the (?P<attractor>\w+)$",),
    "agreement_rc": (r"^the (?P<subject>\w+) that the (?P<attractor>\w+) (?P<verb>\w+)$",),
    "agreement_within_rc": (r"^the (?P<attractor>\w+) that the (?P<subject>\w+)$",),
    "greater_than": (
        r"^the (?P<event>\w+) lasted from the year (?P<century>\d\d) (?P<start>\d\d) "
        r"to the year (?P<century_again>\d\d)$",
    ),
    "induction": (r"(?:^| )(?P<earlier>\w+) (?P<answer>\w+)(?: .*)? (?P<again>(?P=earlier))$",),
    # what the sentence names besides the person: a place or an object
    "pronouns": (
        r"^(?P<name>[A-Z]\w+) (?P<verb>\w+) (?:to )?(?:the|a) (?P<thing>\w+) \w+$",
        r"^at the (?P<thing>\w+) (?P<name>[A-Z]\w+) (?P<verb>\w+)$",
    ),
    "city_country": (_SAYS + r"(?P<city>[A-Z]\w+)",),
    "country_capital": (_SAYS + r"(?P<country>[A-Z]\w+)",),
    "city_capital": (_SAYS + r"(?P<city>[A-Z]\w+)",),
}
