//! The decoder's weights on the GPU, each matrix in the order in which the kernels read it.
//!
//! q, k and v form one matrix; gate and up are interleaved tile by tile. Matrices stay in few bits
//! ([`gpu_format`]): AWQ's are repacked on the GPU, the others on the host. Floats are converted to the
//! activations' element type (fp16 or bf16), and so are matrices in few bits that form one with them.
//! Dummy weights are generated on the GPU: random in every bit, with scales that keep activations
//! in a sane range.

use std::sync::Arc;

use gpu::{Buffer, CudaError, MemoryPlace, Stream};
use half::f16;
use kernels::cuda::{Element, ElementBuffer};
use kernels::stream_linear::codes::{self, Packed};
use kernels::stream_linear::{
    Arrangement, AwqPart, Format, Int8Room, LargeM, Layout, StreamLinear, StreamLinearKernels,
    fill_normal,
};

use super::CudaLoadError;
use crate::model::config::ModelConfig;
use crate::weights::gpu_format::{code_source, gpu_format};
use crate::weights::{
    AwqMatrix, Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError,
};

pub(super) struct LayerWeights<V = ElementBuffer, M = StreamLinear> {
    pub attn_norm: V,
    pub mlp_norm: V,
    pub q_norm: Option<V>,
    pub k_norm: Option<V>,
    pub qkv: M,
    pub qkv_bias: Option<V>,
    pub o: M,
    pub o_bias: Option<V>,
    /// `[n_experts, hidden]`, in a layer with experts: gate, up and down are then those of all experts.
    pub router: Option<V>,
    pub gate_up: M,
    pub down: M,
}

impl<V, M> LayerWeights<V, M> {
    /// The matrices, in the order in which a pass reads them.
    pub fn linears(&self) -> [&M; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub const fn is_sparse(&self) -> bool {
        self.router.is_some()
    }
}

/// Weights with vectors of type `V` and matrices of type `M`.
pub(super) struct Weights<V, M> {
    /// `[vocab, hidden]`
    pub embedding: V,
    pub layers: Vec<LayerWeights<V, M>>,
    pub final_norm: V,
    pub lm_head: M,
}

pub(super) type DeviceWeights = Weights<ElementBuffer, StreamLinear>;

/// Layers from `first` on have their matrices in the host's memory (`--cpu-offload-gb`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offload {
    pub first: usize,
    /// What they take there.
    pub n_bytes: u64,
}

impl Offload {
    /// As few of the last layers as make `wanted_bytes`, or all.
    pub fn plan(
        checkpoint: &dyn Checkpoint,
        element: Element,
        wanted_bytes: u64,
    ) -> Result<Self, CudaLoadError> {
        let config = checkpoint.config();
        let mut plan = Self {
            first: config.n_layers,
            n_bytes: 0,
        };
        while plan.n_bytes < wanted_bytes && plan.first > 0 {
            plan.first -= 1;
            for fused in Fused::of_layer(config, plan.first) {
                let layout = fused.layout(checkpoint, element)?;
                plan.n_bytes += (layout.weight_bytes() + layout.scale_bytes()) as u64;
            }
        }
        Ok(plan)
    }

    fn place_of(&self, layer: usize) -> MemoryPlace {
        if layer < self.first {
            MemoryPlace::Device
        } else {
            MemoryPlace::Host
        }
    }
}

/// A copy in host memory, packed as on the GPU, while the model sleeps.
pub(super) struct HostWeights {
    element: Element,
    /// Their size on the GPU.
    pub n_bytes: u64,
    weights: Weights<Vec<u16>, HostMatrix>,
}

pub(super) struct HostMatrix {
    layout: Layout,
    place: MemoryPlace,
    weights: Vec<u8>,
    scales: Vec<u8>,
}

/// Matrices that are fused into one on the GPU.
struct Fused {
    ids: Vec<MatrixId>,
    arrangement: Arrangement,
}

impl Fused {
    /// q, k and v; o; gate and up; down. The last two of all experts, if the layer has them.
    fn of_layer(config: &ModelConfig, i: usize) -> [Self; 4] {
        let stacked = |ids| Self {
            ids,
            arrangement: Arrangement::Stacked,
        };
        let mut gate_up = vec![MatrixId::Gate(i), MatrixId::Up(i)];
        let mut down = vec![MatrixId::Down(i)];
        if let Some(experts) = config.experts_of(i) {
            let all = (0..experts.n_experts).map(|e| MatrixId::of_expert(i, e));
            (gate_up, down) = all.fold((vec![], vec![]), |(mut pairs, mut downs), [g, u, d]| {
                pairs.extend([g, u]);
                downs.push(d);
                (pairs, downs)
            });
        }
        [
            stacked(vec![MatrixId::Q(i), MatrixId::K(i), MatrixId::V(i)]),
            stacked(vec![MatrixId::O(i)]),
            Self {
                ids: gate_up,
                arrangement: Arrangement::GateUp,
            },
            stacked(down),
        ]
    }

    fn head(config: &ModelConfig) -> Self {
        let id = if config.tied_embeddings {
            MatrixId::Embedding
        } else {
            MatrixId::LmHead
        };
        Self {
            ids: vec![id],
            arrangement: Arrangement::Stacked,
        }
    }

    /// The parts share `n_in` and a format.
    fn layout(
        &self,
        checkpoint: &dyn Checkpoint,
        element: Element,
    ) -> Result<Layout, CudaLoadError> {
        let mut parts = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            let part = checkpoint.storage(*id)?;
            if part.is_reordered {
                let place = id.safetensors_stem();
                return Err(CudaLoadError::ActOrder { place });
            }
            parts.push(part);
        }
        let format = gpu_format(&parts, element).map_err(CudaError::from)?;
        let widths: Vec<usize> = parts.iter().map(|part| part.n_out).collect();
        let layout = Layout::new(format, self.arrangement, &widths, parts[0].n_in);
        Ok(layout.map_err(CudaError::from)?)
    }
}

/// Of all routers.
fn n_router_values(config: &ModelConfig) -> usize {
    let experts = config.experts.as_ref();
    config.n_sparse_layers() * config.hidden * experts.map_or(0, |experts| experts.n_experts)
}

/// Of every layer, and the head.
fn all_fused(config: &ModelConfig) -> impl Iterator<Item = Fused> {
    let of_layers = (0..config.n_layers).flat_map(|i| Fused::of_layer(config, i));
    of_layers.chain([Fused::head(config)])
}

impl<V, M> Weights<V, M> {
    /// All matrices but the embedding.
    fn linears(&self) -> impl Iterator<Item = &M> {
        let of_layers = self.layers.iter().flat_map(LayerWeights::linears);
        of_layers.chain([&self.lm_head])
    }

    /// Converts all weights to another representation.
    fn map<V2, M2, E>(
        &self,
        vector: impl Fn(&V) -> Result<V2, E>,
        matrix: impl Fn(&M) -> Result<M2, E>,
    ) -> Result<Weights<V2, M2>, E> {
        let optional = |v: &Option<V>| v.as_ref().map(&vector).transpose();
        let layer = |l: &LayerWeights<V, M>| {
            Ok(LayerWeights {
                attn_norm: vector(&l.attn_norm)?,
                mlp_norm: vector(&l.mlp_norm)?,
                q_norm: optional(&l.q_norm)?,
                k_norm: optional(&l.k_norm)?,
                qkv: matrix(&l.qkv)?,
                qkv_bias: optional(&l.qkv_bias)?,
                o: matrix(&l.o)?,
                o_bias: optional(&l.o_bias)?,
                router: optional(&l.router)?,
                gate_up: matrix(&l.gate_up)?,
                down: matrix(&l.down)?,
            })
        };
        Ok(Weights {
            embedding: vector(&self.embedding)?,
            layers: self.layers.iter().map(layer).collect::<Result<_, E>>()?,
            final_norm: vector(&self.final_norm)?,
            lm_head: matrix(&self.lm_head)?,
        })
    }
}

impl HostWeights {
    /// Uploads the weights again.
    pub fn upload(
        &self,
        stream: &Stream,
        large_m: LargeM,
        int8: Option<Int8Room>,
    ) -> Result<DeviceWeights, CudaError> {
        let formats: Vec<Format> = self.weights.linears().map(|m| m.layout.format).collect();
        let kernels = StreamLinearKernels::load_for(stream, self.element, large_m, int8, &formats)?;
        let mut weights = self.weights.map(
            |bits| ElementBuffer::from_bits(stream, self.element, bits),
            |matrix| {
                let layout = matrix.layout.clone();
                let mut linear = StreamLinear::new_in(&kernels, layout, matrix.place)?;
                linear.load_packed(stream, &matrix.weights, &matrix.scales)?;
                Ok(linear)
            },
        )?;
        weights.chain();
        Ok(weights)
    }
}

impl DeviceWeights {
    /// The memory that [`Self::load`] will need on device and host together, without reading a matrix.
    pub fn bytes_of(checkpoint: &dyn Checkpoint, element: Element) -> Result<u64, CudaLoadError> {
        let config = checkpoint.config();
        let n_values = VectorId::all(config)
            .into_iter()
            .map(|id| id.n_elements(config))
            .sum::<usize>()
            + config.vocab * config.hidden
            + n_router_values(config);
        let mut n_bytes = 2 * n_values;
        for fused in all_fused(config) {
            let layout = fused.layout(checkpoint, element)?;
            n_bytes += layout.weight_bytes() + layout.scale_bytes();
        }
        Ok(n_bytes as u64)
    }

    /// Whether a matrix supports 8-bit activations.
    pub fn has_int8_products(
        checkpoint: &dyn Checkpoint,
        element: Element,
    ) -> Result<bool, CudaLoadError> {
        for fused in Fused::of_layer(checkpoint.config(), 0) {
            if fused.layout(checkpoint, element)?.format == Format::AwqG128 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies the weights to host memory.
    pub fn download(&self, stream: &Stream) -> Result<HostWeights, CudaError> {
        let weights = self.map(
            |vector| vector.all().words().download(stream),
            |linear| {
                Ok::<_, CudaError>(HostMatrix {
                    layout: linear.layout().clone(),
                    place: linear.place(),
                    weights: linear.packed_weights().download(stream)?,
                    scales: linear.packed_scales().download(stream)?,
                })
            },
        )?;
        Ok(HostWeights {
            element: self.element(),
            n_bytes: self.n_bytes(),
            weights,
        })
    }

    pub fn load(
        checkpoint: &dyn Checkpoint,
        stream: &Stream,
        element: Element,
        large_m: LargeM,
        int8: Option<Int8Room>,
        offload: Offload,
    ) -> Result<Self, CudaLoadError> {
        let config = checkpoint.config();
        let formats = all_fused(config)
            .map(|fused| Ok(fused.layout(checkpoint, element)?.format))
            .collect::<Result<Vec<_>, CudaLoadError>>()?;
        let kernels = StreamLinearKernels::load_for(stream, element, large_m, int8, &formats)?;
        let loader = Loader {
            checkpoint,
            stream,
            kernels,
            dummy_seed: checkpoint.dummy_seed(),
            offload,
        };
        let layers = (0..config.n_layers)
            .map(|i| loader.layer(config, i))
            .collect::<Result<Vec<_>, _>>()?;
        let mut weights = Self {
            embedding: loader.embedding()?,
            layers,
            final_norm: loader.vector(VectorId::FinalNorm)?,
            lm_head: loader.linear(&Fused::head(config), MemoryPlace::Device)?,
        };
        weights.chain();
        Ok(weights)
    }

    /// Links every matrix to the next one in a step, and the head to the first. Which experts are next is not known.
    fn chain(&mut self) {
        for layer in &mut self.layers {
            layer.qkv.set_next(&layer.o);
            if !layer.is_sparse() {
                layer.o.set_next(&layer.gate_up);
                layer.gate_up.set_next(&layer.down);
            }
        }
        for i in 1..self.layers.len() {
            let (before, from) = self.layers.split_at_mut(i);
            if !before[i - 1].is_sparse() {
                before[i - 1].down.set_next(&from[0].qkv);
            }
        }
        if let [first, ..] = self.layers.as_slice() {
            self.lm_head.set_next(&first.qkv);
        }
        if let [.., last] = self.layers.as_mut_slice()
            && !last.is_sparse()
        {
            last.down.set_next(&self.lm_head);
        }
    }

    /// The element type of activations.
    pub fn element(&self) -> Element {
        self.embedding.element()
    }

    /// Layers whose matrices are in the host's memory, and the bytes of these.
    pub fn offloaded(&self) -> (usize, u64) {
        let is_there = |m: &&StreamLinear| m.place() == MemoryPlace::Host;
        let layers = self.layers.iter().map(LayerWeights::linears);
        let bytes_of = |matrices: [&StreamLinear; 4]| -> u64 {
            let there = matrices.into_iter().filter(is_there);
            there.map(|matrix| matrix.n_bytes() as u64).sum()
        };
        let bytes: Vec<u64> = layers
            .map(bytes_of)
            .filter(|n_bytes| *n_bytes > 0)
            .collect();
        (bytes.len(), bytes.iter().sum())
    }

    /// In the device's memory.
    pub fn n_bytes(&self) -> u64 {
        let on_device = |m: &&StreamLinear| m.place() == MemoryPlace::Device;
        let layers: usize = self
            .layers
            .iter()
            .map(|l| {
                let optional = [&l.q_norm, &l.k_norm, &l.qkv_bias, &l.o_bias, &l.router];
                let vectors = optional.into_iter().flatten();
                let vectors = vectors.chain([&l.attn_norm, &l.mlp_norm]);
                let matrices = l.linears();
                vectors.map(ElementBuffer::n_bytes).sum::<usize>()
                    + matrices
                        .into_iter()
                        .filter(on_device)
                        .map(StreamLinear::n_bytes)
                        .sum::<usize>()
            })
            .sum();
        let outer = [&self.embedding, &self.final_norm].map(ElementBuffer::n_bytes);
        (layers + outer.iter().sum::<usize>() + self.lm_head.n_bytes()) as u64
    }
}

struct Loader<'a> {
    offload: Offload,
    checkpoint: &'a dyn Checkpoint,
    stream: &'a Stream,
    kernels: Arc<StreamLinearKernels>,
    dummy_seed: Option<u64>,
}

impl Loader<'_> {
    fn element(&self) -> Element {
        self.kernels.element()
    }

    fn layer(&self, config: &ModelConfig, i: usize) -> Result<LayerWeights, CudaLoadError> {
        let optional = |wanted: bool, id| wanted.then(|| self.vector(id)).transpose();
        let qkv_bias = config
            .qkv_bias
            .then(|| self.vectors(&[VectorId::QBias(i), VectorId::KBias(i), VectorId::VBias(i)]))
            .transpose()?;
        let [qkv, o, gate_up, down] = Fused::of_layer(config, i);
        let experts = config.experts_of(i);
        let place = self.offload.place_of(i);
        let linear = |fused| self.linear(fused, place);
        Ok(LayerWeights {
            attn_norm: self.vector(VectorId::AttnNorm(i))?,
            mlp_norm: self.vector(VectorId::MlpNorm(i))?,
            q_norm: optional(config.qk_norm, VectorId::QNorm(i))?,
            k_norm: optional(config.qk_norm, VectorId::KNorm(i))?,
            qkv: linear(&qkv)?,
            qkv_bias,
            o: linear(&o)?,
            o_bias: optional(config.o_bias, VectorId::OBias(i))?,
            router: experts.map(|_| self.router(i)).transpose()?,
            gate_up: linear(&gate_up)?,
            down: linear(&down)?,
        })
    }

    fn vector(&self, id: VectorId) -> Result<ElementBuffer, CudaLoadError> {
        self.vectors(&[id])
    }

    fn vectors(&self, ids: &[VectorId]) -> Result<ElementBuffer, CudaLoadError> {
        let mut values = Vec::new();
        for id in ids {
            values.extend(self.checkpoint.vector(*id)?);
        }
        Ok(ElementBuffer::from_f32(
            self.stream,
            self.element(),
            &values,
        )?)
    }

    fn embedding(&self) -> Result<ElementBuffer, CudaLoadError> {
        let storage = self.checkpoint.storage(MatrixId::Embedding)?;
        if let Some(seed) = self.dummy_seed {
            let n = storage.n_out * storage.n_in;
            let buffer = ElementBuffer::new(self.stream.device(), self.element(), n)?;
            fill_normal(self.stream, buffer.all(), 0.0, 1.0, seed)?;
            return Ok(buffer);
        }
        let matrix = self.checkpoint.matrix(MatrixId::Embedding)?;
        self.rows(&matrix)
    }

    /// Dummy routers choose evenly: logits have the standard deviation 1.
    fn router(&self, i: usize) -> Result<ElementBuffer, CudaLoadError> {
        let id = MatrixId::Router(i);
        if let Some(seed) = self.dummy_seed {
            let (n_out, n_in) = id.shape(self.checkpoint.config());
            let std = 1.0 / (n_in as f32).sqrt();
            let buffer = ElementBuffer::new(self.stream.device(), self.element(), n_out * n_in)?;
            fill_normal(
                self.stream,
                buffer.all(),
                0.0,
                std,
                seed ^ (matrix_key(id) << 8),
            )?;
            return Ok(buffer);
        }
        let matrix = self.checkpoint.matrix(id)?;
        self.rows(&matrix)
    }

    /// `[n_out, n_in]`, row by row.
    fn rows(&self, matrix: &Matrix<'_>) -> Result<ElementBuffer, CudaLoadError> {
        let element = self.element();
        let bits = rows_bits(matrix, element)?;
        Ok(ElementBuffer::from_bits(self.stream, element, &bits)?)
    }

    /// Builds one matrix on the GPU from its parts.
    fn linear(&self, fused: &Fused, place: MemoryPlace) -> Result<StreamLinear, CudaLoadError> {
        let layout = fused.layout(self.checkpoint, self.element())?;
        let mut linear = StreamLinear::new_in(&self.kernels, layout, place)?;
        if let Some(seed) = self.dummy_seed {
            linear.fill_random(self.stream, seed ^ (matrix_key(fused.ids[0]) << 8))?;
            return Ok(linear);
        }
        let is_awq = linear.layout().format.awq_group().is_some();
        let is_half = linear.layout().format == Format::Half;
        // Of parts that are packed on the host.
        let mut packed: Option<Packed> = None;
        for (part, id) in fused.ids.iter().enumerate() {
            let matrix = self.checkpoint.matrix(*id)?;
            match (&matrix, code_source(&matrix)) {
                (Matrix::Awq(awq), _) if is_awq => self.load_awq(&mut linear, part, awq)?,
                (_, Some(source)) if !is_half => {
                    let layout = linear.layout();
                    let packed = packed.get_or_insert_with(|| Packed::zeroed(layout));
                    codes::pack(layout, part, source, packed).map_err(CudaError::from)?;
                }
                _ => {
                    let rows = self.rows(&matrix)?;
                    linear.load_half(self.stream, part, rows.all())?;
                    self.stream.synchronize()?;
                }
            }
        }
        if let Some(packed) = packed {
            linear.load_packed(self.stream, &packed.weights, &packed.scales)?;
            self.stream.synchronize()?;
        }
        Ok(linear)
    }

    fn load_awq(
        &self,
        linear: &mut StreamLinear,
        part: usize,
        awq: &AwqMatrix<'_>,
    ) -> Result<(), CudaLoadError> {
        let qweight = Buffer::from_slice(self.stream, &words(&awq.qweight))?;
        let qzeros = Buffer::from_slice(self.stream, &words(&awq.qzeros))?;
        let scales = Buffer::from_slice(self.stream, &halves(&awq.scales))?;
        let source = AwqPart {
            qweight: qweight.all(),
            qzeros: qzeros.all(),
            scales: scales.all(),
        };
        linear.load_awq(self.stream, part, &source)?;
        Ok(self.stream.synchronize()?)
    }
}

/// Little-endian words from bytes of any alignment in a mapped file.
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes
        .chunks_exact(2)
        .map(|b| f16::from_le_bytes([b[0], b[1]]))
        .collect()
}

/// A unique number for each matrix, so that dummy weights differ.
fn matrix_key(id: MatrixId) -> u64 {
    let (kind, layer) = match id {
        MatrixId::Embedding => (0, 0),
        MatrixId::LmHead => (1, 0),
        MatrixId::Q(i) => (2, i),
        MatrixId::K(i) => (3, i),
        MatrixId::V(i) => (4, i),
        MatrixId::O(i) => (5, i),
        MatrixId::Gate(i) => (6, i),
        MatrixId::Up(i) => (7, i),
        MatrixId::Down(i) => (8, i),
        MatrixId::Router(i) => (9, i),
        // Of a layer's experts, which are filled together.
        MatrixId::ExpertGate(i, _) => (10, i),
        MatrixId::ExpertUp(i, _) => (11, i),
        MatrixId::ExpertDown(i, _) => (12, i),
    };
    kind << 32 | layer as u64
}

/// Unchanged if stored in the element type, otherwise rounded.
fn rows_bits(matrix: &Matrix<'_>, element: Element) -> Result<Vec<u16>, WeightError> {
    let of_element = match element {
        Element::F16 => ElementFormat::F16,
        Element::Bf16 => ElementFormat::BF16,
    };
    match matrix {
        Matrix::Rows { format, bytes, .. } if *format == of_element => {
            let pairs = bytes.chunks_exact(2);
            Ok(pairs.map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
        }
        _ => {
            let values = matrix.to_f32()?.into_iter();
            Ok(values.map(|value| element.bits(value)).collect())
        }
    }
}

impl From<CudaError> for CudaLoadError {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::preset;
    use crate::weights::synthetic::SyntheticCheckpoint;

    /// Qwen3-32B: 16.8 billion weights in gate and up, 8.4 in down, 2.7 in o, 3.4 in q, k and v, 0.78 in the head
    /// and again in the embedding, which has 16 bits. Of Q4_K_M half of the layers have v and down in Q6_K, v in one
    /// matrix with q and k: 5 bits a weight, 9 and 10.
    #[test]
    fn weights_in_few_bits_take_few_bytes() {
        let bits = |billions: f64, bits: f64| billions * bits / 8.0;
        let embedding = bits(0.777_9, 16.0);
        let q4_k_m = bits(16.777 + 2.684 + 8.389 / 2.0 + 3.355 / 2.0, 5.0)
            + bits(8.389 / 2.0 + 0.777_9, 9.0)
            + bits(3.355 / 2.0, 10.0);
        let fp8 = bits(16.777 + 8.389 + 2.684 + 3.355, 8.25) + bits(0.777_9, 16.0);
        for (name, gigabytes) in [
            ("qwen3-32b-q4_k_m", q4_k_m + embedding),
            ("qwen3-32b-fp8", fp8 + embedding),
        ] {
            let preset = preset::find(name).expect("a preset");
            let checkpoint = SyntheticCheckpoint::from_preset(&preset, 0);
            let n_bytes = DeviceWeights::bytes_of(&checkpoint, Element::F16).expect("known") as f64;
            assert!(
                (n_bytes / (gigabytes * 1e9) - 1.0).abs() < 0.002,
                "{name}: {n_bytes} for {gigabytes} GB"
            );
        }
    }

    /// Two bytes for each parameter, and the head twice if it is tied to the embedding.
    #[test]
    fn what_weights_take_is_known_before_any_is_read() {
        for (name, billions) in [
            ("tinyllama-1.1b", 1.100),
            ("yi-6b", 6.061),
            ("qwen2.5-3b", 3.086 + 0.311),
        ] {
            let preset = preset::find(name).expect("a preset");
            let checkpoint = SyntheticCheckpoint::from_preset(&preset, 0);
            let n_bytes = DeviceWeights::bytes_of(&checkpoint, Element::F16).expect("known") as f64;
            let expected = 2e9 * billions;
            assert!(
                (n_bytes / expected - 1.0).abs() < 0.005,
                "{name}: {n_bytes}"
            );
        }
    }
}
