//! The floors: what the machine gives, measured by the same load as the server.

use std::process::Command;

use serde_json::Value;

#[test]
fn each_floor_is_measured_and_verified_as_the_server_is() {
    let floors = "--only appending-sync --only overwriting-sync --only http --only send";
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args("floors --seconds 1 --json".split(' ').chain(floors.split(' ')))
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    // A machine with much else to do may miss the rate of the sends.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let reports = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
    let [appending, overwriting, http, send] = &*reports else { panic!("four floors: {text}") };
    for report in &reports {
        let (exercised, latency) = (&report["exercised"][0]["count"], &report["latency_us"]["p50"]);
        assert!(exercised.as_u64() > Some(0) && latency.as_f64() > Some(0.0), "{report}");
        assert_eq!(report["scenario"], "floors");
    }
    assert_ne!(appending["title"], overwriting["title"]);
    let cpu = |report: &Value| {
        let results = report["results"].as_array().expect("results").clone();
        let of_thread = results.iter().find(|result| result["name"] == "CPU of its thread").expect("its CPU").clone();
        of_thread["value"].as_f64().expect("a number")
    };
    assert!(cpu(http) > 0.0 && cpu(send) > 0.0, "{text}");
}
