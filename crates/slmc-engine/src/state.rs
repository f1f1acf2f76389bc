//! One pass through the decoder: what a batch of tokens does to the cache and the buffers.

use slmc_ir::TokenId;
use slmc_kernels::{
    Team, add, give_freed_memory_back, norm_rows,
    packed::{add_product, product},
    rotate_heads,
};

use crate::{
    Engine, EngineError,
    attention::{Attention, FEW_ROWS},
    cache::{Element, HeadSize, Layer, Layers},
    input::{Input, Pass},
    share::{Lines, for_chunks, for_each_part, sized},
    weights::{Block, Stacked},
};

/// Numbers that one task of adding handles.
const CHUNK: usize = 1 << 13;

/// A cache, and the buffers of whoever fills it.
#[derive(Debug)]
pub(crate) struct State {
    layers: Layers,
    buffers: Buffers,
}

#[derive(Debug)]
struct Buffers {
    attention: Attention,
    /// The residual stream, `[n_rows, d_model]`.
    x: Lines,
    /// Results of stacked projections, matrix after matrix.
    stacked: Lines,
    /// Attention's mix: what the projection back to the stream is given.
    mix: Vec<f32>,
    /// What is added to the stream.
    step: Lines,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Angle of a position, `[d_head / 2]`, in radians.
    frequencies: Vec<f64>,
    stream_in: Input,
    mix_in: Input,
    ffn_in: Input,
    logits: Lines,
    /// Of the batch that ran last.
    pass: Pass,
}

impl State {
    /// Room for `n_sequences` of `capacity` tokens each.
    pub fn new(engine: &Engine, n_sequences: usize, capacity: usize) -> Self {
        let (spec, options) = (engine.spec(), engine.options());
        let weights = engine.weights();
        let blocks = || weights.blocks.iter();
        let of_stream = blocks().flat_map(|b| b.qkv.matrices.iter().chain(&b.gate_up.matrices));
        let of_mix = blocks().flat_map(|b| &b.attn_output.matrices);
        let of_ffn = blocks().flat_map(|b| &b.down.matrices);
        let buffers = Buffers {
            attention: Attention::new(spec, n_sequences, capacity, options.n_threads),
            x: Lines::default(),
            stacked: Lines::default(),
            mix: Vec::new(),
            step: Lines::default(),
            cos: Vec::new(),
            sin: Vec::new(),
            frequencies: spec.rope_frequencies(),
            stream_in: Input::new(engine.reading(), of_stream.chain([weights.head()])),
            mix_in: Input::new(engine.reading(), of_mix),
            ffn_in: Input::new(engine.reading_for_down(), of_ffn),
            logits: Lines::default(),
            pass: Pass::Write,
        };
        let size = HeadSize::new(spec.d_head, capacity);
        let n_heads = n_sequences * spec.n_kv_heads;
        Self { layers: Layers::new(options.kv, spec.n_layers, n_heads, size), buffers }
    }

    /// Tokens that fit, in a sequence.
    pub fn capacity(&self) -> usize {
        self.buffers.attention.heads().capacity
    }

    /// Runs tokens; the residual stream of those from number `first_wanted` on stays in the buffers. Of the others the last
    /// block makes keys and values alone.
    pub fn run(
        &mut self,
        engine: &Engine,
        tokens: &[TokenId],
        first_wanted: usize,
        places: Places<'_>,
        pass: Pass,
    ) -> Result<(), EngineError> {
        let Self { layers, buffers } = self;
        if (buffers.pass, pass) == (Pass::Read, Pass::Write) {
            buffers.shrink();
        }
        buffers.pass = pass;
        buffers.embed(engine, tokens)?;
        buffers.angles(places, tokens.len());
        let rows = Rows { engine, places, n: tokens.len(), first_wanted: 0, pass };
        match layers {
            Layers::F16(layers) => buffers.blocks(rows, first_wanted, layers),
            Layers::F32(layers) => buffers.blocks(rows, first_wanted, layers),
            Layers::Int8(layers) => buffers.blocks(rows, first_wanted, layers),
        }
        Ok(())
    }

    /// What the head multiplies, of the first `n` wanted rows of the batch that ran last, `[n, d_model]`: the residual stream
    /// after the final norm, in f32.
    pub fn hidden(&self, engine: &Engine, n: usize, out: &mut Vec<f32>) {
        let (spec, begin) = (engine.spec(), out.len());
        out.extend_from_slice(&self.buffers.x[..n * spec.d_model]);
        norm_rows(&mut out[begin..], &engine.weights().final_norm, spec.norm_eps);
    }

    /// Logits of rows `row..row + n` of the batch that ran last, counted from the first wanted, `[n, vocab_size]`.
    pub fn logits(&mut self, engine: &Engine, row: usize, n: usize) -> &[f32] {
        let (spec, b) = (engine.spec(), &mut self.buffers);
        let d = spec.d_model;
        let stream = &b.x[row * d..(row + n) * d];
        b.stream_in.set_rms_norm(stream, &engine.weights().final_norm, spec.norm_eps, b.pass, engine.team());
        let logits = b.logits.sized(n * spec.vocab_size);
        let head = engine.weights().head();
        product(head, b.stream_in.of(head), logits, engine.team());
        logits
    }
}

/// Where the tokens of a batch stand.
#[derive(Clone, Copy)]
pub(crate) enum Places<'e> {
    /// One after the other in the only sequence, from this position on.
    From(usize),
    /// Each in a sequence of its own, at these positions.
    Apart(&'e [usize]),
}

impl Places<'_> {
    fn position(self, row: usize) -> usize {
        match self {
            Self::From(first) => first + row,
            Self::Apart(positions) => positions[row],
        }
    }
}

/// The batch that is run.
#[derive(Clone, Copy)]
struct Rows<'e> {
    engine: &'e Engine,
    places: Places<'e>,
    n: usize,
    /// Rows before this one are done once their keys and values are kept.
    first_wanted: usize,
    pass: Pass,
}

impl<'e> Rows<'e> {
    /// Those that are wanted.
    fn wanted(self) -> Self {
        let (skipped, n) = (self.first_wanted, self.n - self.first_wanted);
        let places = match self.places {
            Places::From(first) => Places::From(first + skipped),
            Places::Apart(positions) => Places::Apart(&positions[skipped..]),
        };
        Self { places, n, first_wanted: 0, ..self }
    }

    /// The team, where the rows are worth waking it for element-wise loops.
    fn team(self) -> Option<&'e Team> {
        (self.n > FEW_ROWS).then(|| &**self.engine.team())
    }
}

impl Buffers {
    /// Gives back what reading took: as long as tokens are written, the cache that grows needs the memory.
    fn shrink(&mut self) {
        let lines = [&mut self.x, &mut self.stacked, &mut self.step, &mut self.logits];
        lines.into_iter().for_each(|lines| *lines = Lines::default());
        [&mut self.mix, &mut self.cos, &mut self.sin].into_iter().for_each(|numbers| *numbers = Vec::new());
        self.attention.shrink();
        [&mut self.stream_in, &mut self.mix_in, &mut self.ffn_in].into_iter().for_each(Input::shrink);
        give_freed_memory_back();
    }

    fn embed(&mut self, engine: &Engine, tokens: &[TokenId]) -> Result<(), EngineError> {
        let d = engine.spec().d_model;
        let embedding = &engine.weights().embedding;
        let key = slmc_ir::TensorKey::model(slmc_ir::Role::Embedding);
        for (row, &token) in self.x.sized(tokens.len() * d).chunks_exact_mut(d).zip(tokens) {
            let decoded = embedding.decode_row(token as usize, row);
            decoded.map_err(|source| EngineError::Block { key, source })?;
        }
        Ok(())
    }

    /// Cosines and sines of `n` positions, each `[n, d_head / 2]`; the angles in f64, as they grow with the position.
    fn angles(&mut self, places: Places<'_>, n: usize) {
        let half = self.frequencies.len();
        let (cos, sin) = (sized(&mut self.cos, n * half), sized(&mut self.sin, n * half));
        for row in 0..n {
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let (s, c) = (places.position(row) as f64 * frequency).sin_cos();
                (cos[row * half + i], sin[row * half + i]) = (c as f32, s as f32);
            }
        }
    }

    fn blocks<T: Element>(&mut self, rows: Rows<'_>, first_wanted: usize, layers: &mut [Layer<T>]) {
        let blocks = &rows.engine.weights().blocks;
        for (i, (block, layer)) in blocks.iter().zip(layers).enumerate() {
            let is_last = i + 1 == blocks.len();
            let rows = Rows { first_wanted: if is_last { first_wanted } else { 0 }, ..rows };
            self.attend(rows, block, layer);
            self.feed_forward(rows.wanted(), block);
        }
    }

    /// Adds attention's part to the stream of the rows that are wanted, which then begin it.
    fn attend<T: Element>(&mut self, rows: Rows<'_>, block: &Block, layer: &mut Layer<T>) {
        let spec = rows.engine.spec();
        self.norm(rows, &block.attn_norm);
        project(&block.qkv, &self.stream_in, &mut self.stacked, rows);
        self.place_queries(rows, block);
        self.place_keys(rows, block, layer);
        if rows.first_wanted > 0 {
            self.x.copy_within(rows.first_wanted * spec.d_model..rows.n * spec.d_model, 0);
        }
        let rows = rows.wanted();
        if rows.n == 0 {
            return;
        }
        let mix = sized(&mut self.mix, rows.n * spec.n_heads * spec.d_head);
        match rows.places {
            Places::From(first) => match (rows.pass, rows.engine.attention()) {
                (Pass::Read, Some(kernels)) => {
                    self.attention.run_half(kernels, layer, first, mix, rows.engine.team());
                }
                _ => self.attention.run(layer, first, mix, rows.engine.team()),
            },
            Places::Apart(positions) => self.attention.run_apart(layer, positions, mix, rows.engine.team()),
        }
        self.mix_in.set(mix, rows.pass, rows.engine.team());
        add_projection(&block.attn_output, &self.mix_in, &mut self.step, &mut self.x, rows);
    }

    fn feed_forward(&mut self, rows: Rows<'_>, block: &Block) {
        if rows.n == 0 {
            return;
        }
        self.norm(rows, &block.ffn_norm);
        let matrices = [0, 1].map(|which| block.gate_up.matrix(which));
        let has_bias = [0, 1].iter().any(|&which| block.gate_up.bias(which).is_some());
        if has_bias || !self.ffn_in.set_gate_up(matrices, &self.stream_in, rows.engine.team()) {
            project(&block.gate_up, &self.stream_in, &mut self.stacked, rows);
            let (stacked, n) = (&self.stacked, rows.n);
            let gate_up = |row: usize| [0, 1].map(|which| &stacked[block.gate_up.range(which, row, n)]);
            self.ffn_in.set_swiglu(n, &gate_up, rows.pass, rows.engine.team());
        }
        add_projection(&block.down, &self.ffn_in, &mut self.step, &mut self.x, rows);
    }

    /// The stream, normed, as the next projections take it.
    fn norm(&mut self, rows: Rows<'_>, gain: &[f32]) {
        let (d, eps) = (rows.engine.spec().d_model, rows.engine.spec().norm_eps);
        self.stream_in.set_rms_norm(&self.x[..rows.n * d], gain, eps, rows.pass, rows.engine.team());
    }

    /// Queries of the rows that are wanted, normed, rotated and scaled, in attention's order.
    fn place_queries(&mut self, rows: Rows<'_>, block: &Block) {
        let spec = rows.engine.spec();
        let (heads, n, half) = (self.attention.heads(), rows.n, spec.d_head / 2);
        let (d, width) = (heads.d, heads.group * heads.d);
        let (stacked, cos, sin) = (&self.stacked, &self.cos, &self.sin);
        let to_scale = (d as f32).powf(-0.5);
        let n_wanted = n - rows.first_wanted;
        let queries = sized(&mut self.attention.queries, heads.n_kv * n_wanted * width);
        for_chunks(rows.team(), queries, (n_wanted * width).max(1), &|kv, queries| {
            for (row, out) in (rows.first_wanted..).zip(queries.chunks_exact_mut(width)) {
                let query = block.qkv.range(0, row, n);
                out.copy_from_slice(&stacked[query][kv * width..(kv + 1) * width]);
                if let Some(gain) = &block.query_norm {
                    norm_rows(out, gain, spec.norm_eps);
                }
                let angles = row * half..(row + 1) * half;
                rotate_heads(out, &cos[angles.clone()], &sin[angles], to_scale);
            }
        });
    }

    /// Keys, normed and rotated, and values, in the cache.
    fn place_keys<T: Element>(&mut self, rows: Rows<'_>, block: &Block, layer: &mut Layer<T>) {
        let spec = rows.engine.spec();
        let (heads, n, half) = (self.attention.heads(), rows.n, spec.d_head / 2);
        let d = heads.d;
        for row in 0..n {
            let keys = &mut self.stacked[block.qkv.range(1, row, n)];
            if let Some(gain) = &block.key_norm {
                norm_rows(keys, gain, spec.norm_eps);
            }
            let angles = row * half..(row + 1) * half;
            rotate_heads(keys, &self.cos[angles.clone()], &self.sin[angles], 1.0);
        }
        let stacked = &self.stacked;
        let of = |which: usize, row: usize, kv: usize| {
            &stacked[block.qkv.range(which, row, n)][kv * d..(kv + 1) * d]
        };
        match rows.places {
            Places::From(first) => for_each_part(rows.team(), layer.heads_mut(), &|kv, cache| {
                (0..n).for_each(|row| cache.keep(first + row, of(1, row, kv), of(2, row, kv)));
            }),
            Places::Apart(positions) => {
                // The heads of a sequence after those of the one before.
                for (head, mut cache) in layer.heads_mut().enumerate().take(n * heads.n_kv) {
                    let (row, kv) = (head / heads.n_kv, head % heads.n_kv);
                    cache.keep(positions[row], of(1, row, kv), of(2, row, kv));
                }
            }
        }
    }
}

/// Projections of one input, biases added, matrix after matrix.
fn project<const N: usize>(stack: &Stacked<N>, input: &Input, out: &mut Lines, rows: Rows<'_>) {
    let out = out.sized(stack.n_rows * rows.n);
    let mut rest = &mut *out;
    for matrix in &stack.matrices {
        let (part, after) = rest.split_at_mut(matrix.n_rows() * rows.n);
        product(matrix, input.of(matrix), part, rows.engine.team());
        rest = after;
    }
    for which in 0..N {
        if let Some(bias) = stack.bias(which) {
            (0..rows.n).for_each(|row| add(&mut out[stack.range(which, row, rows.n)], bias));
        }
    }
}

/// Adds a projection to the residual stream.
fn add_projection(stack: &Stacked<1>, input: &Input, step: &mut Lines, x: &mut [f32], rows: Rows<'_>) {
    let n = stack.n_rows * rows.n;
    if let ([matrix], None) = (&stack.matrices[..], stack.bias(0))
        && add_product(matrix, input.of(matrix), &mut x[..n], rows.engine.team())
    {
        return;
    }
    project(stack, input, step, rows);
    for_chunks(rows.team(), &mut x[..n], CHUNK, &|i, x| add(x, &step[i * CHUNK..][..x.len()]));
}
