//! Routes: lists, and static routes added at run time.

use hyphae_config::endpoint::{RouteSpec, parse_via, via_text};
use hyphae_routing::{Rib, RouteSource, Via};
use hyphae_rpc::message::Error;
use hyphae_rpc::method::{QueriedSubnet, Route, RouteParams, StaticRoute};
use hyphae_wire::Prefix;

use crate::context::Dispatcher;
use crate::error::{bad_route, no_route, not_committed, not_stored};
use crate::reply::{Outcome, rows, value};
use hyphae_node::request::Request;
use hyphae_node::views::{RouteView, SearchView, StaticRouteView};

impl Dispatcher {
    pub(crate) async fn selected_routes(&self) -> Outcome {
        rows(self.ask(Request::SelectedRoutes).await?, route).await
    }

    pub(crate) async fn fallback_routes(&self) -> Outcome {
        rows(self.ask(Request::FallbackRoutes).await?, route).await
    }

    pub(crate) async fn queried_subnets(&self) -> Outcome {
        let rendered = |search: SearchView| QueriedSubnet {
            subnet: search.address.subnet().to_string(),
            expiration: search.remaining.as_secs().to_string(),
            expiration_seconds: search.remaining.as_secs(),
        };
        rows(self.ask(Request::Searches).await?, rendered).await
    }

    pub(crate) async fn static_routes(&self) -> Outcome {
        let rendered = |view: StaticRouteView| StaticRoute {
            prefix: view.route.prefix.to_string(),
            via: via_text(view.route.via),
            reachable: view.in_use,
        };
        rows(self.ask(Request::StaticRoutes).await?, rendered).await
    }

    pub(crate) async fn add_route(&self, params: RouteParams) -> Outcome {
        let prefix = prefix(&params)?;
        let via = via(&params)?.ok_or_else(|| bad_route("via is missing"))?;
        let route = RouteSpec { prefix, via };
        self.check_route(&route).map_err(bad_route)?;
        // An operator may have edited the file.
        let change = self.files.routes.reread().await;
        let mut change = change.map_err(not_stored)?;
        if !change.new.routes.contains(&route) {
            change.new.routes.push(route);
        }
        change.commit().await.map_err(not_committed)?;
        let added = self.ask(|reply| Request::AddRoute(route, reply)).await?;
        value(added.map_err(bad_route)?)
    }

    pub(crate) async fn remove_route(&self, params: RouteParams) -> Outcome {
        let prefix = prefix(&params)?;
        let via = via(&params)?;
        let matches = |p: Prefix, v: Via| p == prefix && via.is_none_or(|via| via == v);
        // The guard comes first, so that of two removals at once the second finds no route. A file that cannot be
        // read matters only if there is a route to remove.
        let change = self.files.routes.reread().await;
        let routes = self.ask(Request::StaticRoutes).await?;
        let mut routes = routes.iter().map(|view| view.route);
        if !routes.any(|route| matches(route.prefix, route.via)) {
            return Err(no_route(prefix));
        }
        let mut change = change.map_err(not_stored)?;
        let kept = |route: &RouteSpec| !matches(route.prefix, route.via);
        change.new.routes.retain(kept);
        change.commit().await.map_err(not_committed)?;
        let removed = self.ask(|reply| Request::RemoveRoute(prefix, via, reply));
        value(removed.await?)
    }

    /// Refuses a static route that could never be used.
    pub(super) fn check_route(&self, route: &RouteSpec) -> Result<(), hyphae_routing::RouteError> {
        let mut trial = Rib::new(self.key.address());
        trial.add_static(route.route()).map(|_| ())
    }
}

fn prefix(params: &RouteParams) -> Result<Prefix, Error> {
    params
        .prefix
        .parse()
        .map_err(|error: hyphae_wire::address::InvalidPrefix| bad_route(error))
}

fn via(params: &RouteParams) -> Result<Option<Via>, Error> {
    let via = params.via.as_deref().map(parse_via).transpose();
    via.map_err(bad_route)
}

fn route(view: RouteView) -> Route {
    let next_hops: Vec<_> = view.next_hops.iter().map(ToString::to_string).collect();
    let origin = match view.origin {
        RouteSource::Connected => "connected",
        RouteSource::Static => "static",
        RouteSource::Dynamic => "dynamic",
    };
    Route {
        subnet: view.prefix.to_string(),
        next_hop: next_hops.first().cloned().unwrap_or_default(),
        next_hops,
        metric: view.metric,
        seqno: view.seqno,
        origin: origin.to_owned(),
    }
}
