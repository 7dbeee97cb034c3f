"""The colours that class ids are shown in where a dataset has none of its own."""


def palette(entries: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: the bits of a class id, three at a time, become the highest bits of red, green and blue."""
    return tuple(
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for index in range(entries)
    )
