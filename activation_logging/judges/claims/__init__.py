"""Claims in an answer, one by one: found by typed rules, compared with what is known."""

from activation_logging.judges.claims.judge import claims_judge, read_claims
from activation_logging.judges.claims.record import Fact, Profile, World

__all__ = ["Fact", "Profile", "World", "claims_judge", "read_claims"]
