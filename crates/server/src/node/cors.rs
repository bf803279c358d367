//! Which web pages may call the client port from a browser.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a browser may remember that it may call.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(3600);
/// What a page may read of a reply that is an error and nothing else.
const GRPC_HEADERS: [&str; 3] = ["grpc-status", "grpc-message", "grpc-status-details-bin"];

/// Lets pages of these origins call, `*` any page; `None` if there are none.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let values: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    if values.is_empty() {
        return None;
    }
    let is_any = values.iter().any(|origin| origin == "*");
    let allowed = if is_any { AllowOrigin::any() } else { AllowOrigin::list(values) };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::POST])
            // A wildcard would leave out `authorization`.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(GRPC_HEADERS.map(HeaderName::from_static))
            .max_age(PREFLIGHT_AGE_MAX),
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use axum::http::{Request, Response, header};
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;

    /// The header that lets a page of `https://maps.example` read the reply.
    async fn allowed(origins: &[&str], method: Method) -> Option<String> {
        let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
        let inner = service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let request = Request::builder()
            .method(method)
            .uri("/anchorhold.v1.AnchorService/GetAnchor")
            .header(header::ORIGIN, "https://maps.example")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,x-grpc-web")
            .body(Body::empty())
            .unwrap();
        let is_preflight = request.method() == Method::OPTIONS;
        let response = layer(&origins)?.layer(inner).oneshot(request).await.unwrap();
        let text = |name| {
            let value: Option<&HeaderValue> = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        if is_preflight {
            let headers = text(header::ACCESS_CONTROL_ALLOW_HEADERS).unwrap();
            assert_eq!(headers, "authorization,x-grpc-web");
        }
        text(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    }

    #[tokio::test]
    async fn only_pages_of_the_named_origins_may_call() {
        let here = Some("https://maps.example".to_owned());
        for method in [Method::OPTIONS, Method::POST] {
            let ours = ["https://maps.example", "https://other.example"];
            assert_eq!(allowed(&ours, method.clone()).await, here);
            assert_eq!(allowed(&["https://other.example"], method.clone()).await, None);
            assert_eq!(allowed(&["*"], method.clone()).await.as_deref(), Some("*"));
            assert_eq!(allowed(&[], method).await, None);
        }
    }
}
