//! Energy of each case, from `machine_load.jsonl`: that of the device that served.

use std::collections::BTreeMap;

use records::rows::{CaseLoad, EnergySource};

use super::requests::{CaseSamples, MeteredEnergy};
use super::run_folder::{RunFolder, for_each_line};
use crate::ReportError;

/// Cases that ran beside others share their energy with them, and get none.
///
/// # Errors
///
/// If a run's `machine_load.jsonl` cannot be read or one of its lines is no load of a case.
pub fn take_in(cases: &mut [CaseSamples], runs: &[&RunFolder]) -> Result<(), ReportError> {
    let mut metered: BTreeMap<(&str, String), MeteredEnergy> = BTreeMap::new();
    for run in runs {
        let record = run.record.as_ref();
        let has_gpu = record.is_some_and(|record| record.environment.gpu.is_some());
        for_each_line(run, records::MACHINE_LOAD, |line| {
            let load: CaseLoad = serde_json::from_str(line).map_err(|error| error.to_string())?;
            if let ([case], Some(energy)) = (load.cases.as_slice(), load.energy)
                && let Some(joules) = energy.device_j(has_gpu)
            {
                let energy = MeteredEnergy {
                    joules,
                    seconds: energy.seconds,
                    is_estimate: has_gpu && energy.gpu_source == Some(EnergySource::Power),
                };
                metered.insert((&run.run_id, case.clone()), energy);
            }
            Ok(())
        })?;
    }
    for case in cases {
        case.energy = metered
            .get(&(case.run_id.as_str(), case.case.clone()))
            .copied();
    }
    Ok(())
}
