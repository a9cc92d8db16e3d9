"""The sign and the strength of an effect as a colour: blue for positive, red for negative.

The two ends are ColorBrewer's RdBu, which red-green colour-blind readers tell apart; numbers stand
beside every colour.
"""

BLUE = (33, 102, 172)
RED = (178, 24, 43)
WHITE = (255, 255, 255)


def fill(value: float, largest: float) -> str:
    """White at 0, towards blue or red as `value` nears `largest` (the square root of the ratio)."""
    strength = (min(1.0, abs(value) / largest) ** 0.5) * 0.8 if largest else 0.0
    end = BLUE if value > 0 else RED
    return _hex(tuple(a + (b - a) * strength for a, b in zip(WHITE, end, strict=True)))


def ink(background: str) -> str:
    """Black or white, whichever is easier to read on `background` (`#rrggbb`)."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # WCAG: the two contrasts are equal where (1.05 / (L + 0.05)) = ((L + 0.05) / 0.05)
    return "#111111" if luminance > 0.179 else "#ffffff"


def stroke(value: float, largest: float) -> str:
    """`#rrggbbaa`: the colour of the sign, the fainter the weaker."""
    strength = (abs(value) / largest) ** 0.5 if largest else 0.0
    alpha = round(255 * (0.12 + 0.68 * strength))
    return _hex(BLUE if value > 0 else RED) + f"{alpha:02x}"


def _hex(rgb: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(channel):02x}" for channel in rgb)
