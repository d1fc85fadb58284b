"""Worlds in which a move does harm, and worlds in which something else does."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.scenario.world import Plane, Station

BASELINE = {"east": 45, "west": 35, "managed": 20}


@dataclass
class Cliff(Station):
    """A provider that does not stand what it admits: slower by ``factor`` beyond ``cliff_rps``."""

    cliff_rps: float = 1e9
    factor: float = 4.0

    def respond_s(self, rps: float, dt_s: float) -> float:
        usual = super().respond_s(rps, dt_s)
        return usual * (self.factor if rps > self.cliff_rps else 1.0)


def three() -> dict[str, Station]:
    return {
        "east": Station(0.020, 8, 0.6),
        "west": Station(0.030, 6, 0.6),
        "managed": Cliff(0.022, 8, 3.0),
    }


def settled(seed: int, rps: float = 150.0) -> Plane:
    plane = Plane(three(), rps, baseline=BASELINE, seed=seed)
    plane.step(25)
    return plane


def get_cheap_and_break(plane: Plane) -> None:
    """The provider gets attractive; what it then gets it does not stand."""
    managed = plane.stations["managed"]
    assert isinstance(managed, Cliff)
    managed.price_usd_per_million = 0.3
    managed.cliff_rps = plane.rps * (plane.shares["managed"] + 0.1)


def nothing(plane: Plane) -> None:
    pass


def get_cheap(plane: Plane) -> None:
    plane.stations["managed"].price_usd_per_million = 0.3


def brown_out(plane: Plane) -> None:
    plane.stations["east"].service_s *= 3.0


def slower_for_all(plane: Plane) -> None:
    for station in plane.stations.values():
        station.service_s *= 1.5


def more_demand(plane: Plane) -> None:
    plane.rps *= 1.6


def recover(plane: Plane) -> None:
    plane.stations["west"].service_s *= 0.4


def get_cheap_while_another_breaks(plane: Plane) -> None:
    get_cheap(plane)
    plane.step(2)
    brown_out(plane)


HARMLESS: tuple[Callable[[Plane], None], ...] = (
    nothing,
    get_cheap,
    brown_out,
    slower_for_all,
    more_demand,
    recover,
    get_cheap_while_another_breaks,
)
