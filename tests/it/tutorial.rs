//! The page of the tutorial: it is the file beside it, and a browser that opens it shows the class.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use serde_json::{Value, json};

use crate::browser::Chromium;
use crate::support::*;

#[test]
fn the_page_in_the_tutorial_is_the_file_and_short() {
    let text = fs::read_to_string("docs/tutorial.md").unwrap();
    let shown = text.split("```html\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown, fs::read_to_string("docs/class.html").unwrap());
    assert!(shown.lines().count() <= 60, "{} lines", shown.lines().count());
}

/// The name and the last cell of each session's row, from its events.
fn expected(class: &[String]) -> BTreeMap<String, (String, String)> {
    let mut rows = BTreeMap::new();
    for event in class {
        let event: Value = serde_json::from_str(event).unwrap();
        let (session, payload) = (text_of(&event["session_id"]), &event["payload"]);
        let (name, cell) = rows.entry(session.clone()).or_insert((session, String::new()));
        if let Some(told) = payload["student_name"].as_str() {
            *name = told.to_owned();
        }
        // Warnings have a time, too, and the page does not ask for them.
        match event["event_type"].as_str().unwrap() {
            "timer_tick" | "timer_started" => {
                let left = payload["time_remaining"].as_u64().or(payload["remaining_seconds"].as_u64()).unwrap();
                *cell = format!("{}:{:02}", left / 60, left % 60);
            }
            "quiz_timeout" => *cell = "over".to_owned(),
            "quiz_completed" => {
                let score = &payload["score"];
                *cell = format!("{} of {}", score["correct"], score["total_questions"]);
            }
            _ => {}
        }
    }
    rows
}

/// The same, of the page, in alphabetical order.
fn sorted(rows: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

/// A page of a browser, and how often it was asked.
struct Page {
    debugger: Socket,
    asked: u64,
}

impl Page {
    /// The value of an expression of JavaScript, as JSON.
    fn evaluate(&mut self, expression: &str) -> Value {
        self.asked += 1;
        let parameters = json!({"expression": expression, "returnByValue": true});
        let question = json!({"id": self.asked, "method": "Runtime.evaluate", "params": parameters});
        self.debugger.send(&question.to_string());
        loop {
            let mut answer = self.debugger.json();
            if answer["id"] == self.asked {
                return answer["result"]["result"]["value"].take();
            }
        }
    }

    /// Waits until the page is live and shows these rows.
    fn await_rows(&mut self, what: &str, class: &[String]) {
        let expected = sorted(expected(class).into_values());
        await_true(what, || {
            let shown = self.evaluate(SHOWN);
            let rows = serde_json::from_value::<Vec<(String, String)>>(shown["rows"].clone()).unwrap_or_default();
            shown["state"] == "live" && sorted(rows.into_iter()) == expected
        });
    }
}

/// The address of a site that has this page only, until the tests end: as `python3 -m http.server` has it.
fn served(page: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let is_page = lines.next().is_some_and(|first| first.starts_with("GET /class.html"));
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) =
                if is_page { ("200 OK", fs::read(page).unwrap()) } else { ("404 Not Found", Vec::new()) };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = (&stream).write_all(&[head.as_bytes(), &body].concat());
        }
    });
    address
}

/// The state that the page shows, and the first and the last cell of each row.
const SHOWN: &str = "({
    state: document.querySelector('#state').textContent,
    rows: [...document.querySelectorAll('#sessions li')].map((row) => [
        row.firstChild.textContent,
        row.lastChild.textContent,
    ]),
})";

#[test]
fn the_page_of_the_tutorial_shows_the_class_live_and_late() {
    // An address of its own, so that its port is still free when the server restarts. Process ids have 22 bits.
    let own = Ipv4Addr::from_bits(0x7fc0_0000 | std::process::id()).to_string();
    let mut server = Server::with(&[("HOST", &own)]);
    let url = format!("http://{}/class.html?server=http://{}", served("docs/class.html"), server.addr);
    let Some(browser) = Chromium::open(&url) else { return };
    let mut page = Page { debugger: browser.debugger(), asked: 0 };

    let class = classroom();
    page.await_rows("a live page without sessions", &[]);
    let (first, rest) = class.split_at(3_000);
    acknowledged(&server.publisher().pipeline(first));
    page.await_rows("the first part of the class", first);
    server.stop();
    server.restart_in_place();
    acknowledged(&server.publisher().pipeline(rest));
    page.await_rows("the whole class, after a restart", &class);
    let filled = page.evaluate("[...document.querySelectorAll('progress')].filter((bar) => bar.position > 0.5).length");
    assert_eq!(filled, 72, "every student has seen most questions, and every timer has run down");
    page.evaluate("location.reload()");
    page.await_rows("the whole class, for a page that is opened late", &class);
}
