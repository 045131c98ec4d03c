//! The course of the learning rate.

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// It stays.
    Constant,
}

/// A learning rate for every step, as transformers' schedules give it: it rises from 0 in a straight line, then follows
/// its shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// How it goes on after the warm-up.
    pub shape: Shape,
    /// Its largest value.
    pub peak: f64,
    /// Steps of the warm-up.
    pub warmup_steps: usize,
    /// All steps.
    pub total_steps: usize,
}

impl Schedule {
    /// A schedule whose warm-up is a share of all steps, rounded up; the last step is none of it, so that a training of
    /// one step trains (with transformers' schedules its learning rate is 0).
    pub fn new(shape: Shape, peak: f64, warmup_ratio: f64, total_steps: usize) -> Self {
        let warmup_steps = (warmup_ratio * total_steps as f64).ceil() as usize;
        Self { shape, peak, warmup_steps: warmup_steps.min(total_steps.saturating_sub(1)), total_steps }
    }

    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / rest as f64).min(1.0);
        match self.shape {
            Shape::Linear => self.peak * (1.0 - progress),
            Shape::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Shape::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall_as_transformers_schedules_do() {
        let schedule = |shape| Schedule::new(shape, 2.0, 0.15, 20); // 3 steps of warm-up
        for shape in [Shape::Linear, Shape::Cosine, Shape::Constant] {
            let rates: Vec<f64> = (0..4).map(|step| schedule(shape).at(step)).collect();
            assert_eq!(rates, [0.0, 2.0 / 3.0, 4.0 / 3.0, 2.0], "{shape:?}");
        }
        // get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup at step 11: progress 8/17.
        assert!((schedule(Shape::Linear).at(11) - 2.0 * 9.0 / 17.0).abs() < 1e-12);
        let cosine = 1.0 + (std::f64::consts::PI * 8.0 / 17.0).cos();
        assert!((schedule(Shape::Cosine).at(11) - cosine).abs() < 1e-12);
        assert_eq!(schedule(Shape::Constant).at(19), 2.0);
        assert_eq!(schedule(Shape::Linear).at(20), 0.0);
        assert_eq!(schedule(Shape::Linear).at(1000), 0.0);
    }

    #[test]
    fn no_warm_up_begins_at_the_peak() {
        assert_eq!(Schedule::new(Shape::Linear, 1e-3, 0.0, 10).at(0), 1e-3);
        assert_eq!(Schedule::new(Shape::Constant, 1e-3, 0.0, 0).at(0), 1e-3);
    }

    #[test]
    fn a_single_step_trains() {
        for shape in [Shape::Linear, Shape::Cosine, Shape::Constant] {
            assert_eq!(Schedule::new(shape, 1e-3, 0.1, 1).at(0), 1e-3, "{shape:?}");
        }
        // Nor does a warm-up of everything end before its peak.
        assert_eq!(Schedule::new(Shape::Linear, 4.0, 1.0, 5).at(4), 4.0);
    }
}
