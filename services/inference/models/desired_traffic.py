"""Which versions of a model shall answer, and the moves from one such state to the next; plain values, no disk."""

from dataclasses import dataclass, replace

from services.common.errors import Conflict, InvalidInput


@dataclass(frozen=True)
class Traffic:
    """Desired traffic of a model, as `traffic.json` has it. A version 0 means none."""

    generation: int = 0
    """Counts changes."""
    stable_version: int = 0
    """Answers what no other does; 0 means the newest version that is ready."""
    previous_version: int = 0
    """The stable version before; stays loaded, so that rolling back loads nothing."""
    canary_version: int = 0
    """Answers a share of the requests that name no version."""
    canary_share: float = 0.0
    """0 to 1, of the routing keys."""
    shadow_version: int = 0
    """Runs what the stable version has answered, for comparison; its outputs go nowhere."""
    newest_version: int = 0
    """Highest number that a deleted version had: it is not given out again."""

    @property
    def versions(self) -> set[int]:
        """All versions that have a part."""
        return {self.stable_version, self.previous_version, self.canary_version, self.shadow_version} - {0}

    @property
    def candidate(self) -> int:
        """The version that is tried out: the canary, or else the shadow."""
        return self.canary_version or self.shadow_version

    def expect(self, model: str, generation: int | None) -> None:
        """Make sure that the traffic still is what a caller has seen.

        Raises:
            Conflict: It has another generation.
        """
        if generation not in (None, self.generation):
            raise Conflict(
                f"traffic of model {model!r} has generation {self.generation}, not {generation}; somebody changed it "
                "meanwhile, look at it again",
                reason="STALE_GENERATION",
                details={"generation": str(self.generation)},
            )

    def moved_to(
        self,
        stable_version: int,
        canary_version: int = 0,
        canary_share: float = 0.0,
        shadow_version: int = 0,
        *,
        forget_previous: bool = False,
    ) -> "Traffic":
        """Return the traffic after *stable_version* took over, with the given trials beside it and no others.

        With *forget_previous* the version that served before can be deleted, and nothing is rolled back to.

        Raises:
            InvalidInput: The share is not one, or a trial is of the stable version itself.
        """
        if not 0 <= canary_share <= 1:
            raise InvalidInput(f"share is {canary_share}; give 0 to 1", field="canary.share")
        for field, version in (("canary.version", canary_version), ("shadow_version", shadow_version)):
            if version == stable_version != 0:
                raise InvalidInput(f"{field} is {version}, the stable version itself; name another", field=field)
        previous = self.previous_version if stable_version == self.stable_version else self.stable_version
        return replace(
            self,
            generation=self.generation + 1,
            stable_version=stable_version,
            previous_version=0 if forget_previous else previous,
            canary_version=canary_version,
            canary_share=canary_share if canary_version else 0.0,
            shadow_version=shadow_version,
        )

    def without(self, number: int) -> "Traffic":
        """Return the same traffic, with *number* remembered as given out."""
        return replace(self, newest_version=max(self.newest_version, number))

    def promoted(self, model: str, version: int = 0) -> "Traffic":
        """Return the traffic after *version*, or else the one that is tried out, became stable.

        Raises:
            Conflict: Nothing is tried out.
        """
        if not (version or self.candidate):
            raise Conflict(
                f"model {model!r} has neither canary nor shadow; name the version to promote", reason="NO_CANDIDATE"
            )
        return self.moved_to(version or self.candidate)

    def rolled_back(self, model: str) -> "Traffic":
        """Return the traffic after what is tried out was taken back or, without that, the last change of stable.

        Raises:
            Conflict: There is nothing to go back to.
        """
        if self.candidate:
            return replace(self, generation=self.generation + 1, canary_version=0, canary_share=0.0, shadow_version=0)
        if not self.previous_version:
            past = f"only version {self.stable_version} in it" if self.stable_version else "no version in it yet"
            raise Conflict(
                f"traffic of model {model!r} has had {past}; set it to the version you want",
                reason="NO_PREVIOUS_VERSION",
            )
        return self.moved_to(self.previous_version)
