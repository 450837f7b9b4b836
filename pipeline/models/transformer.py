"""Decoder-only self-attention language model (Vaswani et al. 2017, "Attention is all you need").

Run with `dvc repro train@transformer`. Departures from the paper, each measured to help at this size: RMSNorm before
each block instead of LayerNorm after it, rotary positions (Su et al. 2021), RMS-normalised queries and keys, squared
ReLU, zero-initialised output projections, Muon for the hidden matrices.

Dimensions: B batch, T tokens, D width, H heads, K = D / H head width, V vocabulary.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers import lora
from pipeline.layers.blocks import Muon, make_average, token_nats, warmup_cosine
from pipeline.layers.decoding import Decoder, choose, require_room
from pipeline.params import Trainable
from pipeline.randomness import derive_seed, seed_global, seeded
from pipeline.runtime.processes import HardwareError

LEARNS = ("text",)


class Config(Trainable):
    """Hyper-parameters of the language model."""

    layers: int = Field(ge=1, description="blocks")
    heads: int = Field(ge=1, description="attention heads per block")
    width: int = Field(ge=2, description="width D of the residual stream")
    context: int = Field(ge=2, description="tokens per training window, and the longest attention span")
    dropout: float = Field(ge=0, lt=1, description="share of activations dropped, of each block's output")
    steps: int = Field(ge=0, description="optimizer steps; 0 keeps the weights of a start as they are")
    batch_size: int = Field(ge=1, description="windows per step, over all processes")
    optimizer: Literal["adamw", "muon"] = Field(description="update rule of the hidden matrices")
    learning_rate: float = Field(gt=0, description="peak learning rate of embeddings and head (AdamW)")
    matrix_learning_rate: float = Field(gt=0, description="peak learning rate of the hidden matrices")
    warmup: int = Field(ge=0, description="steps of linear warm-up")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the peak reached by the cosine's end")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    clip_norm: float = Field(gt=0, description="largest global norm of the gradient")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are kept; 0 keeps the last weights")
    lora_rank: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda rank: not rank,
        description="rank of adapters that are trained in place of the weights of a start (LoRA); 0 trains the weights",
    )
    compile: bool = Field(
        default=False, description="fuse the loss by torch.compile, which needs a compiler: faster, other bits"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> "Config":
        if self.width % (2 * self.heads):
            msg = f"width must be a multiple of 2 * heads (rotary positions turn pairs), got {self.width}, {self.heads}"
            raise ValueError(msg)
        return self


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol: the windows have the length of the context."""
    return {"of": "each token, given those before it in a window", "context": config.context}


def require(config: Config, fields: Fields) -> None:
    """Refuse data that are no text."""
    del config
    find_field(fields, LEARNS)


def rotation(length: int, width: int) -> Tensor:
    """Return cosines and sines of the rotary positions, float32 (2, length, width / 2)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + K/2]) of x (B, H, T, K) by its position's angle; turn is (2, T, K / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn[0], turn[1]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // config.heads)
        self.key_norm = nn.RMSNorm(width // config.heads)
        self.project = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.contract.weight)

    def attend(self, x: Tensor, turn: Tensor) -> Tensor:
        """Return softmax(Q K^T / sqrt(K)) V of x (B, T, D) under a causal mask, (B, T, D)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        queries = rotate(self.query_norm(queries), turn)
        keys = rotate(self.key_norm(keys), turn)
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.project(out.transpose(1, 2).reshape(batch, length, width))  # (B, H, T, K) -> (B, T, D)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """Map the residual stream (B, T, D) to (B, T, D)."""
        x = x + F.dropout(self.attend(self.attention_norm(x), turn), self.dropout, self.training)
        hidden = F.relu(self.expand(self.mlp_norm(x))).square()  # (B, T, D) -> (B, T, 4 D)
        return x + F.dropout(self.contract(hidden), self.dropout, self.training)


class Network(nn.Module):
    """The language model itself: tokens (B, T) int64 to logits (B, T, V)."""

    rotation: Tensor

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        self.register_buffer("rotation", rotation(config.context, config.width // config.heads), persistent=False)
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.zeros_(self.head.weight)  # the first loss is exactly log(V)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token.

        Raises:
            ValueError: if there are more tokens than the context.
        """
        length = tokens.size(1)
        require_room(length, self.rotation.size(1))
        x = self.embedding(tokens)  # (B, T) -> (B, T, D)
        for block in self.blocks:
            x = block(x, self.rotation[:, :length])
        return self.head(self.norm(x))  # (B, T, D) -> (B, T, V)


def list_missing_tools() -> list[str]:
    """Name what torch.compile needs on a CPU and this machine lacks."""
    compiler = shlex.split(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))[0]
    tools = {
        f"a C++ compiler, {compiler} or what CXX names": shutil.which(compiler),
        "openssl": shutil.which("openssl"),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    return [name for name, found in tools.items() if not found]


class Model(LightningModule):
    """Trains and samples the network."""

    given: tuple[str, ...] = ()
    token_rows = ("embedding.weight", "head.weight")  # weights with a row for each token

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.makes = find_field(fields, LEARNS)
        with seeded(seed, "weights"):
            self.network = Network(config, fields[self.makes].vocabulary)
        self.average = make_average(self.network, config.ema) if config.ema else None
        self.compiled: Callable[[dict[str, Tensor]], Tensor] | None = None

    def begin(self, *, has_start: bool) -> None:
        """Put adapters next to the weights of the start, if they are asked for.

        Raises:
            ArtifactError: if there is no start.
        """
        if not self.config.lora_rank:
            return
        if not has_start:
            msg = "lora_rank: adapters stand next to the weights of a start, which is none; expected 0"
            raise ArtifactError(msg)
        with seeded(self.seed, "adapters"):
            lora.adapt(self.network, self.network.blocks, self.config.lora_rank)
        if self.average is not None:  # made before there were adapters
            self.average = make_average(self.network, self.config.ema)

    def end(self) -> dict[str, Tensor]:
        """Put the adapters into the weights, and return their factors by name; none without adapters."""
        factors = lora.collect(self.kept)
        lora.merge(self.kept)
        return factors

    def on_fit_start(self) -> None:
        """Compile the loss, if that is asked for.

        Raises:
            HardwareError: if a CPU's compiler is missing, or what it needs.
        """
        if not self.config.compile:
            return
        if self.device.type == "cpu" and (missing := list_missing_tools()):
            msg = f"compile: true needs {', '.join(missing)}: not found; set compile: false"
            raise HardwareError(msg)
        self.compiled = torch.compile(self.loss, dynamic=False)

    def configure_model(self) -> None:
        """Cut the weights, block by block, into a part for each process, where the strategy asks for it (FSDP)."""
        if self.device_mesh is None or isinstance(self.network, FSDPModule):
            return
        for network in (self.network, self.kept):
            for part in (*network.blocks, network):
                if not isinstance(part, FSDPModule):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])

    @property
    def trained(self) -> Network:
        """The weights that a start gives."""
        return self.network

    @property
    def kept(self) -> Network:
        """The weights that are kept: the average where there is one."""
        return self.network if self.average is None else cast("Network", self.average.module)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy in nats of inputs (B, T) against targets (B, T)."""
        logits = self.network(batch["inputs"])
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        if self.config.dropout:
            seed_global(derive_seed(self.seed, "dropout", batch_idx, self.global_rank))
        return {"loss": (self.compiled or self.loss)(batch)}

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Update the averaged weights with each step, before any callback can save the two apart."""
        super().optimizer_step(*arguments, **settings)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW or Muon with warm-up and cosine decay."""
        config = self.config
        trained = [p for p in self.network.parameters() if p.requires_grad]
        # The factors of an adapter are no hidden matrices: their product is one.
        matrices = [p for p in self.network.blocks.parameters() if p.ndim == 2 and not config.lora_rank]
        chosen = {id(p) for p in matrices}
        hidden, others = ([p for p in trained if (id(p) in chosen) is is_hidden] for is_hidden in (True, False))
        optimizer: torch.optim.Optimizer
        if config.optimizer == "muon":
            optimizer = Muon(
                hidden,
                others,
                lr=config.matrix_learning_rate,
                adam_lr=config.learning_rate,
                weight_decay=config.weight_decay,
            )
        else:
            groups = [
                {"params": hidden, "lr": config.matrix_learning_rate, "weight_decay": config.weight_decay},
                {"params": others, "lr": config.learning_rate, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                step, steps=config.steps, warmup=config.warmup, final=config.final_learning_rate
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.inference_mode()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        given: Mapping[str, Tensor],
        *,
        length: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> dict[str, Tensor]:
        """Continue a prompt `count` times by `length` tokens: int64 (N, P + length), by the field's name.

        Each step feeds one token and reads the earlier ones from the cache. When the context is full, the last half
        of it is fed again (positions are relative), which costs one pass every context / 2 tokens.

        Args:
            count: N.
            generator: source of the tokens, on the model's device.
            given: `prompt`, int64 (P,) with P >= 1.
            length: tokens to add.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: most likely tokens kept; 0 keeps all.
            top_p: probability mass kept; 1 keeps all.
        """
        context = self.config.context
        tokens = given["prompt"].to(self.device).expand(count, -1)
        decoder = Decoder(self.kept.eval(), count)
        fresh = tokens[:, -context:]
        for _ in range(length):
            if decoder.length + fresh.size(1) > context:
                decoder.length = 0
                fresh = tokens[:, -(context // 2) :]
            logits = decoder.feed(fresh)  # (N, V)
            fresh = choose(logits, generator, temperature, top_k, top_p)
            tokens = torch.cat([tokens, fresh], dim=1)
        return {self.makes: tokens}

    @torch.inference_mode()
    def score(self, tokens: Tensor, stride: int) -> Tensor:
        """Cross-entropy in nats of each token of a stream but the first, float64 (N - 1,), each exactly once.

        Windows of `context` tokens advance by `stride`; only targets that no earlier window scored count. With stride
        = context the windows do not overlap; with a smaller one each target has at least context - stride tokens of
        context, but for the first window.

        Raises:
            ValueError: if the stride is not between 1 and the context.
        """
        context = self.config.context
        if not 1 <= stride <= context:
            msg = f"stride must be between 1 and the context of {context}, got {stride}"
            raise ValueError(msg)
        network = self.kept.eval()
        tokens = tokens.long().to(self.device)
        targets = tokens[1:]
        whole = max(0, (len(targets) - context) // stride + 1)
        losses: list[Tensor] = []
        starts = torch.arange(whole, device=self.device) * stride
        span = torch.arange(context, device=self.device)
        for part in starts.split(max(1, 16_384 // context)) if whole else ():
            windows = part[:, None] + span  # (B, T)
            nats = token_nats(network(tokens[windows]), targets[windows])
            fresh = nats[:, -stride:]
            losses.append(torch.cat([nats[0, :-stride], fresh.flatten()]) if not losses else fresh.flatten())
        done = sum(len(part) for part in losses)
        if done < len(targets):
            start = max(0, len(targets) - context) if whole else 0
            nats = token_nats(network(tokens[None, start:-1]), targets[None, start:])
            losses.append(nats[0, done - start :])
        return torch.cat(losses)
