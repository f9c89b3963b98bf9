"""Dice with as many sides as the command line says.

python examples/sided_dice.py -s dice.sock --sides 20
"""

import click
from dice import Dice

from nodma import main


class SidedDice(Dice):
    """Roll dice that have as many sides as you like."""

    def __init__(self, sides: int) -> None:
        super().__init__()
        if not 2 <= sides <= 255:
            raise ValueError(f"a die has 2 to 255 sides, not {sides}")
        self.config.sides = sides


if __name__ == "__main__":
    main(SidedDice, options=[click.option("--sides", default=6, show_default=True, help="Sides of each die.")])
