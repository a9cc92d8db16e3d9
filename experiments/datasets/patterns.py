"""The spans of the bundled sets' prompts, for `by_pattern(model, pairs, SPANS[name])`."""

from collections.abc import Mapping

# whichever of the two names comes first, the subject is the one that is said again
_NAMES = (
    r"(?P<io>[A-Z]\w+) and (?P<s1>[A-Z]\w+) .*\b(?P<s2>(?P=s1))\b",
    r"(?P<s1>[A-Z]\w+) and (?P<io>[A-Z]\w+) .*\b(?P<s2>(?P=s1))\b",
)
# a year as one span: tokenizers cut it in different places
_YEARS = (
    r"^The (?P<event>\w+) lasted from the year (?P<start>\d{4}) to the year (?P<century>\d\d)$",
)
_IN = r"^(?:The main language that people in )?(?P<city>.+?)(?: is a city .*| speak is)$"

SPANS: Mapping[str, tuple[str, ...]] = {
    "agreement/simple": (r"^The (?P<subject>\w+)$",),
    "agreement/nounpp": (r"^The (?P<subject>\w+) (?P<preposition>\w+) the (?P<attractor>\w+)$",),
    "agreement/within_rc": (r"^The (?P<attractor>\w+) that the (?P<subject>\w+)$",),
    "agreement/rc": (r"^The (?P<subject>\w+) that the (?P<attractor>\w+) (?P<verb>\w+)$",),
    "greater_than/years": _YEARS,
    "greater_than/digits": _YEARS,
    "ioi/eap_ig": _NAMES,
    "ioi/templates": _NAMES,
    "cities/country": (_IN,),
    "cities/continent": (_IN,),
    "cities/language": (_IN,),
    "coloured_objects": (
        r"^The (?P<object>.+?) is (?P<colour>\w+)\. What color is the (?P<object_again>.+?)\?\n"
        r"A\. (?P<choice_a>\w+)\nB\. (?P<choice_b>\w+)\n",
    ),
}
