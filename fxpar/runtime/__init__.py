"""What emitted modules call: conversions between placements, lowerings of operators, and groups of ranks."""

from fxpar.runtime.conversions import all_gather as all_gather
from fxpar.runtime.conversions import all_reduce as all_reduce
from fxpar.runtime.conversions import all_reduce_both as all_reduce_both
from fxpar.runtime.conversions import all_to_all as all_to_all
from fxpar.runtime.conversions import keep_both_on_first as keep_both_on_first
from fxpar.runtime.conversions import keep_gradient_on_first as keep_gradient_on_first
from fxpar.runtime.conversions import keep_on_first as keep_on_first
from fxpar.runtime.conversions import reduce_scatter as reduce_scatter
from fxpar.runtime.conversions import slice as slice
from fxpar.runtime.conversions import sum_gradient as sum_gradient
from fxpar.runtime.conversions import zero_padding as zero_padding
from fxpar.runtime.embedding import embedding as embedding
from fxpar.runtime.experts import expert_linear as expert_linear
from fxpar.runtime.groups import Groups as Groups
from fxpar.runtime.lookup import gather as gather
from fxpar.runtime.lookup import one_hot as one_hot
from fxpar.runtime.loss import count_targets as count_targets
from fxpar.runtime.loss import cross_entropy as cross_entropy
from fxpar.runtime.nll import nll_loss as nll_loss
from fxpar.runtime.random import Randomness as Randomness
from fxpar.runtime.random import dropout as dropout
from fxpar.runtime.random import seeded as seeded
from fxpar.runtime.random import seeded_call as seeded_call
from fxpar.runtime.softmax import log_softmax as log_softmax
from fxpar.runtime.softmax import logsumexp as logsumexp
from fxpar.runtime.softmax import softmax as softmax
