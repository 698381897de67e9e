use model::{ExecutionId, NodeId};
use ports::catalog::contract::route;

use super::*;

/// A copy that has read a whole with these routes, of which the last has number 10.
fn view(life: &str, routes: &[&Route]) -> View {
    let mut view = View::default();
    view.replace(whole(life, 10, routes), later(0));
    view
}

fn whole(life: &str, number: u64, routes: &[&Route]) -> Whole {
    Whole {
        life: life.to_owned(),
        number,
        routes: routes.iter().map(|route| standing(number, route)).collect(),
    }
}

fn standing(number: u64, route: &Route) -> Standing {
    Standing {
        number,
        route: Arc::new(route.clone()),
    }
}

/// So long after the tests began.
fn later(seconds: u64) -> Instant {
    static BEGAN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *BEGAN + std::time::Duration::from_secs(seconds)
}

fn fresh(version: u64) -> Route {
    route(SandboxId::random(), version)
}

fn found(view: &View, route: &Route) -> Option<u64> {
    match view.find(route.sandbox) {
        Found::Route(route) => Some(route.version),
        _ => None,
    }
}

fn told(changes: &[RouteChange]) -> String {
    let letter = |change: &RouteChange| match change {
        RouteChange::Published(_) => 'p',
        RouteChange::Withdrawn(..) => 'w',
    };
    changes.iter().map(letter).collect()
}

fn follow(view: &mut View, change: Change) -> Option<String> {
    let mut changes = Vec::new();
    let is_next = view.follow(change, &mut changes);
    is_next.then(|| told(&changes))
}

fn withdrawn(number: u64, route: &Route) -> Change {
    Change::Withdrawn {
        number,
        sandbox: route.sandbox,
        seat: route.seat,
    }
}

#[test]
fn what_is_kept_of_a_route_is_read_back() {
    let route = fresh(7);
    let kept = serde_json::to_string(&Kept::of(&route)).unwrap();
    let said = format!("12 7 {} {kept}", payload::seat(route.seat));
    let read = Standing::parse(route.sandbox, &said).unwrap();
    assert_eq!((read.number, &*read.route), (12, &route));
}

#[test]
fn what_none_of_us_wrote_is_no_route() {
    let id = SandboxId::random();
    let seat = payload::seat(Seat {
        node: NodeId::random(),
        execution: ExecutionId::random(),
    });
    assert!(Standing::parse(id, &format!("1 2 {seat} {{}}")).is_ok());
    for said in [
        String::new(),
        "1 2 3".to_owned(),
        format!("1 2 {seat} "),
        format!("-1 2 {seat} {{}}"),
        format!("1 x {seat} {{}}"),
        "1 2 a/b {}".to_owned(),
        format!("1 2 {seat} {{\"m\":\"no host\"}}"),
        format!("1 2 {seat} {{\"e\":\"{}\"}}", "x".repeat(ROUTE_BYTES_MAX)),
    ] {
        assert!(Standing::parse(id, &said).is_err(), "{said}");
    }
}

#[test]
fn changes_are_taken_one_after_the_other() {
    let (a, b) = (fresh(1), fresh(1));
    let mut view = view("life", &[&a]);
    assert_eq!(
        follow(&mut view, Change::Published(standing(11, &b))).as_deref(),
        Some("p")
    );
    assert_eq!(follow(&mut view, Change::Published(standing(13, &b))), None);
    assert_eq!(follow(&mut view, Change::Published(standing(11, &b))), None);
    assert_eq!(follow(&mut view, withdrawn(12, &a)).as_deref(), Some("w"));
    assert_eq!((found(&view, &a), found(&view, &b)), (None, Some(1)));
}

#[test]
fn what_this_process_did_is_told_once() {
    let a = fresh(1);
    let mut view = view("life", &[]);
    assert_eq!(told(&view.put(a.sandbox, standing(11, &a))), "p");
    assert_eq!(told(&view.take(a.sandbox, a.seat, 12)), "w");
    assert!(matches!(view.find(a.sandbox), Found::Withdrawn));
    assert_eq!(
        follow(&mut view, Change::Published(standing(11, &a))).as_deref(),
        Some("")
    );
    assert!(matches!(view.find(a.sandbox), Found::Withdrawn));
    assert_eq!(follow(&mut view, withdrawn(12, &a)).as_deref(), Some(""));
    assert!(matches!(view.find(a.sandbox), Found::Unknown));
    // The answers come late.
    assert_eq!(told(&view.put(a.sandbox, standing(11, &a))), "");
    assert_eq!(told(&view.take(a.sandbox, a.seat, 12)), "");
    assert!(view.all().is_empty());
}

#[test]
fn a_route_in_place_of_another_cuts_the_other_off() {
    let old = fresh(1);
    let new = route(old.sandbox, 2);
    let mut view = view("life", &[&old]);
    assert_eq!(
        follow(&mut view, Change::Published(standing(11, &new))).as_deref(),
        Some("wp")
    );
    let masked = Route {
        version: 3,
        mask_host: None,
        ..new.clone()
    };
    assert_eq!(told(&view.put(old.sandbox, standing(12, &masked))), "p");
    assert_eq!(found(&view, &old), Some(3));
}

#[test]
fn a_whole_of_the_same_life_takes_away_what_is_not_in_it() {
    let (a, b, c) = (fresh(1), fresh(1), fresh(1));
    let mut view = view("life", &[&a, &b]);
    // Done by this process after the whole was begun to be read.
    view.put(c.sandbox, standing(21, &c));
    let changes = view.replace(whole("life", 20, &[&b]), later(60));
    assert_eq!(told(&changes), "w");
    assert_eq!(
        (found(&view, &a), found(&view, &b), found(&view, &c)),
        (None, Some(1), Some(1))
    );
    assert_eq!(
        follow(&mut view, Change::Published(standing(21, &c))).as_deref(),
        Some("")
    );
}

#[test]
fn what_was_lost_is_served_for_a_while_and_known_as_lost() {
    let (a, b) = (fresh(5), fresh(5));
    let mut view = view("life", &[&a, &b]);
    assert_eq!(told(&view.replace(whole("next", 0, &[]), later(15))), "");
    assert_eq!((found(&view, &a), view.all().len()), (Some(5), 2));
    assert!(view.published(a.sandbox).is_none());
    // The reconciler publishes one of them again.
    assert_eq!(
        follow(&mut view, Change::Published(standing(1_000_001, &a))).as_deref(),
        Some("")
    );
    assert!(view.published(a.sandbox).is_some());
    let mut changes = Vec::new();
    view.let_go(later(14), &mut changes);
    assert!(changes.is_empty());
    view.let_go(later(15), &mut changes);
    assert_eq!(told(&changes), "w");
    assert_eq!((found(&view, &a), found(&view, &b)), (Some(5), None));
}

#[test]
fn a_second_loss_gives_no_more_time() {
    let a = fresh(5);
    let mut view = view("life", &[&a]);
    view.replace(whole("next", 0, &[]), later(15));
    view.replace(whole("third", 0, &[]), later(25));
    let mut changes = Vec::new();
    view.let_go(later(15), &mut changes);
    assert_eq!(told(&changes), "w");
}

#[test]
fn of_what_was_lost_and_what_was_kept_the_newer_stands() {
    let (old, other) = (fresh(3), fresh(3));
    let new = route(old.sandbox, 8);
    let mut view = view("life", &[&new, &other]);
    // Redis has come back with what it wrote down before the resume.
    let changes = view.replace(whole("next", 4, &[&old, &other]), later(15));
    assert_eq!(told(&changes), "");
    assert_eq!(found(&view, &old), Some(8));
    assert!(view.published(old.sandbox).is_none());
    assert!(view.published(other.sandbox).is_some());
    assert_eq!(
        follow(&mut view, Change::Published(standing(5, &new))).as_deref(),
        Some("")
    );
    assert!(view.published(old.sandbox).is_some());
}

#[test]
fn what_could_not_be_withdrawn_is_hidden_until_it_is_or_something_newer_comes() {
    let a = fresh(1);
    let mut view = view("life", &[&a]);
    let (version, changes) = view.hide(a.sandbox, a.seat);
    assert_eq!((version, told(&changes)), (Some(1), "w".to_owned()));
    assert!(matches!(view.find(a.sandbox), Found::Withdrawn));
    assert_eq!(told(&view.replace(whole("life", 20, &[&a]), later(0))), "");
    assert_eq!(found(&view, &a), None);
    let newer = Route {
        version: 2,
        ..a.clone()
    };
    assert_eq!(
        follow(&mut view, Change::Published(standing(21, &newer))).as_deref(),
        Some("p")
    );
    assert_eq!(found(&view, &a), Some(2));
    let (version, _) = view.hide(a.sandbox, other(&a));
    assert_eq!(version, None);
}

/// A seat that nobody has.
fn other(route: &Route) -> Seat {
    Seat {
        execution: ExecutionId::random(),
        ..route.seat
    }
}
