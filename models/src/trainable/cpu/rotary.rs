//! Rotary position embeddings: the two halves of a head's components are turned by an angle that grows with the position.

/// Cosines and sines of all positions up to a longest one.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    /// Half a head's width.
    half: usize,
    /// For each position `half` cosines.
    cos: Vec<f32>,
    /// For each position `half` sines.
    sin: Vec<f32>,
}

impl Rotary {
    /// `frequencies`: for each pair of components, by how much one position turns it.
    pub(crate) fn new(frequencies: &[f64], positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    /// How many positions there are angles for.
    pub(crate) fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Cosines and sines: `positions × half` each.
    pub(crate) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Turns one head's row.
    #[inline(always)]
    pub(crate) fn turn(&self, row: &mut [f32], position: usize) {
        self.turn_by(row, position, 1.0);
    }

    /// Turns it back, which is what the backward pass does to gradients.
    #[inline(always)]
    pub(crate) fn turn_back(&self, row: &mut [f32], position: usize) {
        self.turn_by(row, position, -1.0);
    }

    #[inline(always)]
    fn turn_by(&self, row: &mut [f32], position: usize, direction: f32) {
        let range = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        let (low, high) = row.split_at_mut(self.half);
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            let (x, y, sin) = (*low, *high, sin * direction);
            *low = x * cos - y * sin;
            *high = x * sin + y * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_undoes_turning_and_lengths_stay() {
        let rotary = Rotary::new(&[1.0, 0.1], 8);
        let row = [1.0, 2.0, -3.0, 0.5];
        let mut turned = row;
        rotary.turn(&mut turned, 5);
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>();
        assert!((length(&turned) - length(&row)).abs() < 1e-5);
        assert!((turned[0] - (1.0 * 5f32.cos() + 3.0 * 5f32.sin())).abs() < 1e-6);
        rotary.turn_back(&mut turned, 5);
        assert!(turned.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
