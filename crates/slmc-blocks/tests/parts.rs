//! Blocks taken apart and put together again.

use slmc_blocks::{BlockError, Grid, MAX_BLOCK, Parts, PartsLayout, decode, pack, unpack};
use slmc_ir::Format;

/// A fixed sequence of 32-bit numbers (xorshift).
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 8) as usize % limit
    }
}

fn packed_formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| !format.is_float())
}

/// Bits, with every NaN the same: payloads are not part of a layout.
fn bits(weights: &[f32]) -> Vec<u32> {
    weights.iter().map(|w| if w.is_nan() { f32::NAN.to_bits() } else { w.to_bits() }).collect()
}

#[test]
fn any_block_is_its_parts() {
    let mut random = Random(1);
    for format in packed_formats() {
        for _ in 0..500 {
            let block: Vec<u8> = (0..format.block_bytes()).map(|_| random.next() as u8).collect();
            let parts = unpack(format, &block).unwrap();
            let mut packed = vec![0xaa; block.len()];
            pack(format, &parts, &mut packed).unwrap();
            assert_eq!(packed, block, "{format}");
            let (mut expected, mut weights) = ([0.0; MAX_BLOCK], [0.0; MAX_BLOCK]);
            let (expected, weights) =
                (&mut expected[..format.block_weights()], &mut weights[..format.block_weights()]);
            decode(format, &block, expected).unwrap();
            Grid::new(format, &parts).unwrap().decode(&parts.levels, weights);
            assert_eq!(bits(weights), bits(expected), "{format}");
        }
    }
}

#[test]
fn parts_come_back() {
    let mut random = Random(2);
    for format in packed_formats() {
        let layout = PartsLayout::of(format).unwrap();
        let n_groups = format.block_weights() / layout.group;
        for _ in 0..500 {
            let mut parts = Parts { scale: random.next() as u16, ..Parts::default() };
            if format == Format::Mxfp4 {
                parts.scale &= 255;
            }
            if layout.has_min {
                parts.min = random.next() as u16;
            }
            for group in 0..n_groups {
                if let Some((low, high)) = layout.group_scales {
                    let n = (i32::from(high) - i32::from(low) + 1) as usize;
                    parts.group_scales[group] = (random.below(n) as i32 + i32::from(low)) as i8;
                }
                if let Some(largest) = layout.group_mins {
                    parts.group_mins[group] = random.below(usize::from(largest) + 1) as u8;
                }
            }
            for level in &mut parts.levels[..format.block_weights()] {
                *level = random.below(layout.steps.len()) as u8;
            }
            let mut block = vec![0xaa; format.block_bytes()];
            pack(format, &parts, &mut block).unwrap();
            assert_eq!(unpack(format, &block).unwrap(), parts, "{format}");
        }
    }
}

#[test]
fn a_grid_finds_the_nearest_level() {
    let mut random = Random(3);
    for format in packed_formats() {
        let block: Vec<u8> = (0..format.block_bytes()).map(|_| (random.next() as u8) & 0x3f).collect();
        let parts = unpack(format, &block).unwrap();
        let grid = Grid::new(format, &parts).unwrap();
        for index in 0..format.block_weights() {
            let spread = grid.scale(index).abs() * 300.0;
            let weight = grid.offset(index) + spread * (random.below(2001) as f32 / 1000.0 - 1.0);
            let distance = |level: u8| (grid.weight(index, level) - weight).abs();
            let chosen = distance(grid.level(index, weight));
            let n_levels = grid.layout().steps.len();
            let nearest = (0..n_levels).map(|level| distance(level as u8)).fold(f32::INFINITY, f32::min);
            // Half way between two levels either may be taken.
            let slack = spread * 1e-6;
            assert!(chosen <= nearest + slack, "{format} {index}: {chosen} > {nearest}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut block = [0; 210];
    let parts = Parts::default();
    assert_eq!(unpack(Format::F16, &[0; 2]), Err(BlockError::NotPacked { format: Format::F16 }));
    assert!(matches!(
        unpack(Format::Q4K, &[0; 143]),
        Err(BlockError::Length { expected: 144, found: 143, .. })
    ));
    let error = pack(Format::Q4_0, &parts, &mut block[..17]).unwrap_err();
    assert!(matches!(error, BlockError::Length { .. }), "{error}");

    let mut level = parts.clone();
    level.levels[31] = 16;
    let error = pack(Format::Q4_0, &level, &mut block[..18]).unwrap_err();
    assert_eq!(error.to_string(), "level 31 of the block is 16: out of q4_0's range");
    // The levels of Q4_0 end at 32: what lies beyond is not looked at.
    let mut beyond = parts.clone();
    beyond.levels[32] = 16;
    pack(Format::Q4_0, &beyond, &mut block[..18]).unwrap();

    let mut scale = parts.clone();
    scale.group_scales[7] = -1;
    assert!(matches!(
        pack(Format::Q4K, &scale, &mut block[..144]),
        Err(BlockError::Part { what: "group scale", index: 7, value: -1, .. })
    ));
    pack(Format::Q6K, &scale, &mut block).unwrap();
    let mut min = parts.clone();
    min.group_mins[15] = 16;
    assert!(matches!(
        pack(Format::Q2K, &min, &mut block[..84]),
        Err(BlockError::Part { what: "group minimum", index: 15, value: 16, .. })
    ));
    let exponent = Parts { scale: 256, ..parts };
    assert!(matches!(
        pack(Format::Mxfp4, &exponent, &mut block[..17]),
        Err(BlockError::Part { what: "exponent", .. })
    ));
}
